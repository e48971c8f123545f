"""Check that config.json and the weights describe one working Florence-2 with finite numbers.

`checkpoint` calls it. The expected names and shapes are those of transformers' own model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence2.errors import CheckpointError
from florence2_export import layouts
from florence2_export.hub import one_line
from florence2_export.layouts import TIED

OWN_CONFIG = "use the config.json that was saved with these weights"
ORIGINAL = "export the original checkpoint and choose a --precision"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Settings about how a checkpoint was loaded, which say nothing about its weights.
LOADING = ("quantization_config", "compression_config", "attn_implementation", "_attn_implementation")
# What quantization programs store next to a weight.
QUANTIZED = re.compile(
    r".*[._](?P<bitsandbytes>absmax|quant_map|quant_state\..*|SCB|weight_format)"
    r"|.*\.(?P<GPTQ_or_AWQ>qweight|qzeros|g_idx)"
    r"|(?:.*[._])?(?P<scaled>weight_scale|weight_scale_inv|weight_scale_2|weight_packed|weight_zero_point|scale_weight"
    r"|input_scale|scaled_fp8|W_q|zero_point)"
)


def refuse_quantized(weights: Mapping[str, Tensor], config_file: Mapping[str, Any]) -> None:
    """Raise CheckpointError if there are names that only quantized checkpoints have."""
    for name in weights:
        match = QUANTIZED.fullmatch(name)
        if match:
            settings = config_file.get("quantization_config")
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            method = method or str(match.lastgroup).replace("_", " ")
            raise CheckpointError(f"the weights are quantized ({method}: {name}) and cannot be exported; {ORIGINAL}")


def as_floats(weights: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return the weights with other floating-point types, such as float64 and float8, as float32."""
    read = dict(weights)
    other = [name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.dtype not in FLOATS]
    for name in other:
        try:
            read[name] = weights[name].to(torch.float32)
        except RuntimeError as error:  # float4 has no conversion
            raise CheckpointError(
                f"{name} is stored as {weights[name].dtype} and cannot be read; {ORIGINAL}"
            ) from error
    for dtype, count in Counter(str(weights[name].dtype) for name in other).items():
        notes.append(f"weights stored as {dtype.removeprefix('torch.')} are read as float32: {count} in all")
    return read


def read_architecture(config_file: Mapping[str, Any], rows: int, notes: list[str]) -> Florence2Config:
    """Return the config as transformers' class, with the vocabulary size of the embedding, which has `rows`."""
    if config_file.get("quantization_config"):
        notes.append("config.json has a quantization_config, but the weights are not quantized; it is left out")
    try:
        config = layouts.native_config(_without_loading(config_file))
        architecture = Florence2Config.from_dict(config)
    except Exception as error:  # transformers raises many types of exceptions here
        raise CheckpointError(
            f"config.json is not a Florence-2 configuration ({one_line(error)}); {OWN_CONFIG}"
        ) from error
    # With tied weights transformers still keeps a head that differs; without, it fills missing copies at random.
    architecture.tie_word_embeddings = architecture.text_config.tie_word_embeddings = True
    said = architecture.text_config.vocab_size
    if rows != said:
        notes.append(f"config.json says {said} tokens, but the embedding has {rows} rows; {rows} is used")
        architecture.text_config.vocab_size = rows
    return architecture


def _without_loading(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config and the configs in it without the settings about how the checkpoint was loaded."""
    return {
        key: _without_loading(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in LOADING
    }


def expected_weights(architecture: Florence2Config) -> dict[str, Tensor]:
    """Return the weights of transformers' model as names and shapes; the tensors hold no data."""
    try:
        with torch.device("meta"):
            return Florence2ForConditionalGeneration(architecture).state_dict()
    except Exception as error:  # the modules' constructors raise many types of exceptions
        raise CheckpointError(
            f"config.json does not describe a working model ({one_line(error)}); {OWN_CONFIG}"
        ) from error


def check_weights(weights: Mapping[str, Tensor], architecture: Florence2Config, notes: list[str]) -> None:
    """Raise CheckpointError if a weight is missing, misshapen or not finite. Note unknown weights."""
    expected = expected_weights(architecture)
    missing = sorted(expected.keys() - weights.keys() - set(TIED))
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks weights: {len(missing)} in all, among them {missing[0]}; download or save it again"
        )
    for name in sorted(expected.keys() & weights.keys()):
        tensor = weights[name]
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{name} is stored as {tensor.dtype}, but a quantized checkpoint cannot be exported; {ORIGINAL}"
            )
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{name} has the shape {list(tensor.shape)}, "
                f"but config.json describes {list(expected[name].shape)}; {OWN_CONFIG}"
            )
        unusable = int((~tensor.isfinite()).sum())
        if unusable:
            raise CheckpointError(
                f"{name} holds NaN or infinity: {unusable} of its {tensor.numel()} numbers; "
                "the training diverged, or the file is damaged; export an earlier checkpoint"
            )
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        notes.append(
            f"weights that Florence-2 does not have are left out: {len(unknown)} in all, among them {unknown[0]}"
        )
