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
from florence2_export.adapter import Adapter, read_adapter, read_unmerged
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
    image_size: int | None = None,
) -> Checkpoint:
    """Read a checkpoint and merge an adapter into it. Take the tokenizer and image settings from `processor` if given.

    Each is a directory or a hub id. `subfolder` is the checkpoint's folder in it. Images are resized to a square of
    `image_size`, or as the image settings say if it is None.
    """
    found = fetch(source, revision, "model*.safetensors", "pytorch_model*.bin", subfolder)
    config_file = read_config_file(found)
    notes: list[str] = []
    lora = read_adapter(adapter, notes) if adapter is not None else None
    words, images = choose_inputs(found, processor, lora, notes)
    before = len(notes)
    files = weight_files.find(found.directory, FILES, notes)
    weights, microsoft, unmerged = read_weights(found, config_file, files, notes)
    readable = len(notes) == before and not microsoft and lora is None and files[0].suffix == ".safetensors"
    tokenizer = read_tokenizer(words.directory, microsoft or words is not found, settings.PROCESSOR_HINT)
    if lora:
        tokens = 0
        if words is lora.source:
            base = read_tokenizer(found.directory, microsoft, settings.PROCESSOR_HINT) if has_tokenizer(found) else None
            tokens = lora.count_tokens(tokenizer, base, notes)
        notes.extend(lora.notes(found))
        weights = settle_embedding(lora.merge(weights, tokens))
    if (found.directory / ADAPTER_CONFIG).exists() and not unmerged and not (lora and lora.source == found):
        notes.append(f"{found.name} also holds an adapter, which is not merged; to merge it, add --adapter {source}")
    architecture = read_architecture(config_file, weights[EMBEDDING].shape[0], notes)
    check_weights(weights, architecture, notes)
    adapted = lora.source.directory if lora else None
    generate = settings.generation_files(found.directory, config_file, microsoft, adapted)
    config = settings.read_model_config(
        images.directory, found.name, architecture, tokenizer, generate, notes, image_size
    )
    return Checkpoint(
        source=found,
        processor=images,
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


def choose_inputs(
    found: Source, processor: str | None, lora: Adapter | None, notes: list[str]
) -> tuple[Source, Source]:
    """Return where the tokenizer and the image settings come from: `processor`, the adapter, or the checkpoint."""
    if processor is not None:
        inputs = fetch(processor)
        notes.append(f"the tokenizer and the image settings are those of {inputs.name}")
        return inputs, inputs
    words = images = found
    own = lora.source if lora and lora.source != found else None
    if own and has_tokenizer(own):
        words = own
        notes.append(f"the tokenizer is that of the adapter {words.name}")
    if own and settings.has_image_processor(own.directory):
        images = own
        notes.append(f"the image settings are those of the adapter {images.name}")
    return words, images


def has_tokenizer(found: Source) -> bool:
    """Return whether there are files of a tokenizer."""
    return any((found.directory / name).exists() for name in ("tokenizer.json", "vocab.json"))


def read_weights(
    found: Source, config_file: Mapping[str, Any], files: list[Path], notes: list[str]
) -> tuple[dict[str, Tensor], bool, bool]:
    """Return the weights, whether they had Microsoft's names, and whether there were LoRA layers, merged now."""
    stored = weight_files.read(files, notes)
    refuse_quantized(stored, config_file)
    weights = as_floats(weight_names.bare(stored, notes), notes)
    unmerged = read_unmerged(found, files, weights)
    if unmerged:
        changes = unmerged.changes
        notes.append(f"the LoRA layers in {files[0].name} are merged: {len(changes.low_rank)} in all")
        return settle_embedding(unmerged.merge(settle_embedding(changes.weights))), changes.microsoft, True
    microsoft = layouts.is_microsoft(set(weights))
    return settle_embedding(layouts.native_weights(weights) if microsoft else weights), microsoft, False


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
