"""Read a Florence-2 checkpoint of either layout into a `Checkpoint` with native names, without running its code.

It is the first step of `pipeline`. A CheckpointError says in one sentence what is missing, damaged or unsupported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Florence2Config

from florence2.config import ModelConfig, read_json
from florence2.errors import CheckpointError
from florence2_export import layouts, settings, weight_files, weight_names
from florence2_export.adapter import Adapter, read_adapter
from florence2_export.architecture import as_floats, check_weights, read_architecture, refuse_quantized
from florence2_export.hub import Source, fetch
from florence2_export.layouts import EMBEDDING, TIED, UNTIED
from florence2_export.lora import CONFIG as ADAPTER_CONFIG
from florence2_export.tokenizer_files import read_tokenizer

FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint.

    `weights` have native names and the stored precision. The decoder's embedding and the head are there only if they
    differ from the embedding.
    """

    source: Source
    processor: Source  # of the tokenizer and the image settings; the same as `source` unless another was given
    files: list[Path]  # the weight files
    adapter: Adapter | None  # already merged into the weights
    config: ModelConfig
    architecture: Florence2Config
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    microsoft: bool
    readable: bool  # by transformers itself
    notes: tuple[str, ...]  # what the user should know, one sentence each


def read_checkpoint(
    source: str,
    revision: str | None = None,
    adapter: str | None = None,
    processor: str | None = None,
    subfolder: str | None = None,
) -> Checkpoint:
    """Read a checkpoint and merge an adapter into it. Take the tokenizer and image settings from `processor` if given.

    Each is a directory or a hub id. `subfolder` is the checkpoint's folder in it.
    """
    found = fetch(source, revision, "model*.safetensors", "pytorch_model*.bin", subfolder)
    config_file = read_config_file(found)
    lora = read_adapter(adapter) if adapter is not None else None
    notes: list[str] = []
    inputs = found
    if processor is not None:
        inputs = fetch(processor)
        notes.append(f"the tokenizer and the image settings are those of {inputs.name}")
    before = len(notes)
    files = weight_files.find(found.directory, FILES, notes)
    stored = weight_files.read(files, notes)
    refuse_quantized(stored, config_file)
    weights = as_floats(weight_names.bare(stored, notes), notes)
    readable = len(notes) == before and lora is None and files[0].suffix == ".safetensors"
    microsoft = layouts.is_microsoft(set(weights))
    if microsoft:
        weights = layouts.native_weights(weights)
    weights = settle_embedding(weights)
    if lora:
        base = lora.config.get("base_model_name_or_path")
        notes.append(f"the adapter {lora.source.name} says that it was trained on {base}")
        weights = settle_embedding(lora.merge(weights))
    architecture = read_architecture(config_file, weights[EMBEDDING].shape[0], notes)
    check_weights(weights, architecture, notes)
    tokenizer = read_tokenizer(
        inputs.directory, complete=microsoft or inputs is not found, hint=settings.PROCESSOR_HINT
    )
    generate = settings.generation_files(found.directory, config_file, microsoft)
    config = settings.read_model_config(inputs.directory, found.name, architecture, tokenizer, generate, notes)
    return Checkpoint(
        source=found,
        processor=inputs,
        files=files,
        adapter=lora,
        config=config,
        architecture=architecture,
        weights=weights,
        tokenizer=tokenizer,
        microsoft=microsoft,
        readable=readable and not microsoft,
        notes=tuple(notes),
    )


def read_config_file(found: Source) -> dict[str, Any]:
    """Return config.json. Raise CheckpointError if it is not that of a Florence-2 checkpoint."""
    if not (found.directory / "config.json").exists():
        if (found.directory / ADAPTER_CONFIG).exists():
            raise CheckpointError(
                f"{found.name} is an adapter; give the checkpoint that it was trained on, and the adapter with "
                "--adapter"
            )
        inner = sorted(path.parent.name for path in found.directory.glob("*/config.json"))
        if inner:
            raise CheckpointError(
                f"config.json is missing in {found.name}, but not in its folders; add --subfolder {' or '.join(inner)}"
            )
    config_file = read_json(found.directory / "config.json")
    if config_file.get("model_type") != "florence2":
        raise CheckpointError(
            f"{found.name} is not a Florence-2 checkpoint: its model_type is {config_file.get('model_type')!r}, "
            "and only 'florence2' can be exported"
        )
    return config_file


def settle_embedding(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with copies of the embedding only where they differ from it.

    The encoder's copy is dropped in any case, because the prompt is embedded before it reaches the encoder.
    """
    present = [name for name in TIED if name in weights]
    if not present:
        raise CheckpointError("the checkpoint has no token embedding, so it is incomplete; download or save it again")
    embedding = weights[present[0]]
    own = {name: weights[name] for name in UNTIED if name in weights and not same(weights[name], embedding)}
    return {name: tensor for name, tensor in weights.items() if name not in TIED} | {EMBEDDING: embedding} | own


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold equal numbers, even if they are stored in different precisions."""
    return a.shape == b.shape and torch.equal(a.to(b.dtype), b)
