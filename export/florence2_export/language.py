"""Export the language model's weights in the form that the decoder's engine loads. `pipeline` calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from florence2.engine.bart import DECODER_EMBEDDING
from florence2.engine.int4 import compress
from florence2.engine.linear import quantize
from florence2_export.layouts import HEAD

PREFIX = "model.language_model."
CAST = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(asked: str, device: str) -> str:
    """Return what `auto` means here (docs/adr/0001-precision-of-the-language-model.md). The GPU has no int8."""
    if asked != "auto":
        return asked
    return "int8" if device == "cpu" else "float16"


def language_tensors(
    weights: Mapping[str, Tensor], precision: str = "float32", device: str = "cpu"
) -> dict[str, Tensor]:
    """Return tensors by name without prefix. Copies of the embedding are left out, except an int8 head."""
    tensors = {name.removeprefix(PREFIX): weights[name] for name in weights if name.startswith((PREFIX, HEAD))}
    if precision == "int8":
        return dict(_int8(tensors))
    if precision == "int4":
        return dict(_int4(tensors, CAST["float32" if device == "cpu" else "float16"]))
    return {name: tensor.to(CAST[precision]).contiguous() for name, tensor in tensors.items()}


def _int8(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield matrices as int8 with a scale per output, embeddings as bfloat16, and the small rest as float32."""
    for name, tensor in {"lm_head.weight": tensors["shared.weight"], **tensors}.items():
        if name in ("shared.weight", DECODER_EMBEDDING):
            yield name, tensor.to(torch.bfloat16)
        elif tensor.dim() == 2 and not name.endswith("embed_positions.weight"):
            weight, scale = quantize(tensor)
            yield name, weight
            yield name.removesuffix("weight") + "scale", scale
        else:
            yield name, tensor.to(torch.float32).contiguous()


def _int4(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the decoder's matrices as int4, the encoder's, embeddings and a head as int8, the small rest as `dtype`.

    The numbers between the layers have the type of the small rest.
    """
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or name.endswith("embed_positions.weight"):
            yield name, tensor.to(dtype).contiguous()
            continue
        if name.startswith("decoder.layers."):
            parts = compress(tensor)
        else:
            parts = dict(zip(("weight", "scale"), quantize(tensor), strict=True))
        for part, values in parts.items():
            yield name.removesuffix("weight") + part, values


def export_language_model(
    weights: Mapping[str, Tensor], path: Path, precision: str = "float32", device: str = "cpu"
) -> None:
    """Write the tensors as safetensors."""
    save_file(language_tensors(weights, precision, device), path, metadata={"precision": precision})
    path.chmod(0o644)  # safetensors makes the file private, but the server may run as another user
