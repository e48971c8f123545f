"""Read a Florence-2 checkpoint of either layout into a `Checkpoint` with native names, without running its code.

It is the first step of `pipeline`. A CheckpointError says in one sentence what is missing, damaged or unsupported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence2.config import ModelConfig, read_json
from florence2.errors import CheckpointError
from florence2_export import layouts, settings, weight_files
from florence2_export.adapter import Adapter, read_adapter
from florence2_export.hub import Source, fetch, one_line
from florence2_export.layouts import EMBEDDING, TIED, UNTIED
from florence2_export.lora import CONFIG as ADAPTER_CONFIG

FILES = ("model.safetensors", "pytorch_model.bin")
OWN_CONFIG = "use the config.json that was saved with these weights"


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint.

    `weights` have native names and the stored precision. The decoder's embedding and the head are there only if they
    differ from the embedding.
    """

    source: Source
    files: list[Path]  # the weight files
    adapter: Adapter | None  # already merged into the weights
    config: ModelConfig
    architecture: Florence2Config
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    microsoft: bool
    notes: tuple[str, ...]  # what the user should know, one sentence each


def read_checkpoint(source: str, revision: str | None = None, adapter: str | None = None) -> Checkpoint:
    """Read a checkpoint and merge an adapter into it. Each is a directory or a hub id."""
    found = fetch(source, revision, "model*.safetensors", "pytorch_model*.bin")
    config_file = read_config_file(found)
    lora = read_adapter(adapter) if adapter is not None else None
    notes: list[str] = []
    files = weight_files.find(found.directory, FILES)
    weights = weight_files.read(files)
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
    tokenizer = read_tokenizer(found.directory, microsoft)
    config = settings.read_model_config(found.directory, found.name, architecture, tokenizer, microsoft, notes)
    return Checkpoint(found, files, lora, config, architecture, weights, tokenizer, microsoft, tuple(notes))


def read_config_file(found: Source) -> dict[str, Any]:
    """Return config.json. Raise CheckpointError if it is not that of a Florence-2 checkpoint."""
    if (found.directory / ADAPTER_CONFIG).exists() and not (found.directory / "config.json").exists():
        raise CheckpointError(
            f"{found.name} is an adapter; give the checkpoint that it was trained on, and the adapter with --adapter"
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


def read_architecture(config_file: dict[str, Any], rows: int, notes: list[str]) -> Florence2Config:
    """Return the config as transformers' class, with the vocabulary size of the embedding, which has `rows`."""
    try:
        architecture = Florence2Config.from_dict(layouts.native_config(config_file))
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
    """Raise CheckpointError if a weight is missing or does not fit the architecture. Note unknown weights."""
    expected = expected_weights(architecture)
    missing = sorted(expected.keys() - weights.keys() - set(TIED))
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks weights: {len(missing)} in all, among them {missing[0]}; download or save it again"
        )
    for name in sorted(expected.keys() & weights.keys()):
        if not weights[name].is_floating_point():
            raise CheckpointError(
                f"{name} is stored as {weights[name].dtype}, but a quantized checkpoint cannot be exported; "
                "export the original and choose a --precision"
            )
        if weights[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{name} has the shape {list(weights[name].shape)}, "
                f"but config.json describes {list(expected[name].shape)}; {OWN_CONFIG}"
            )
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        notes.append(
            f"weights that Florence-2 does not have are left out: {len(unknown)} in all, among them {unknown[0]}"
        )


def read_tokenizer(directory: Path, microsoft: bool) -> Tokenizer:
    """Return the tokenizer with all of Florence-2's tokens, without padding and truncation left by training."""
    path = directory / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"tokenizer.json is missing in {directory}; copy it from the original checkpoint")
    try:
        tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise CheckpointError(
            f"tokenizer.json in {directory} cannot be read ({one_line(error)}); copy it from the original checkpoint"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if microsoft:
        layouts.complete_tokenizer(tokenizer)
    return tokenizer
