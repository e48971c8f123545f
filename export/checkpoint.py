"""Reads a Florence-2 checkpoint of either layout into one `Checkpoint` with native names. Executes nothing from it.

The first step of `export.pipeline`. Whatever is missing, damaged or foreign is one CheckpointError sentence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration

from export import layouts, settings
from florence2.config import ModelConfig, read_json
from florence2.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.language_model.shared.weight"
HEAD = "lm_head.weight"
# Copies of the embedding: checkpoints store any of them, at least one.
TIED = (
    EMBEDDING,
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    HEAD,
)


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint. `weights` have native names and the stored precision; the head is there if it differs."""

    directory: Path
    config: ModelConfig
    architecture: Florence2Config
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    microsoft: bool
    notes: tuple[str, ...]  # what the user should know, a sentence each


def read_checkpoint(source: str) -> Checkpoint:
    """`source`: a directory or a hub id. Raises CheckpointError."""
    directory = locate(source)
    name = directory.resolve().name if Path(source).is_dir() else source
    config_file = read_json(directory / "config.json")
    if config_file.get("model_type") != "florence2":
        raise CheckpointError(f"{source} is not Florence-2: its model_type is {config_file.get('model_type')!r}")
    notes: list[str] = []
    stored = read_weights(directory)
    microsoft = layouts.is_microsoft(set(stored))
    weights = settle_embedding(layouts.native_weights(stored) if microsoft else stored)
    architecture = read_architecture(config_file, weights[EMBEDDING].shape[0], notes)
    check_weights(weights, architecture, notes)
    tokenizer = read_tokenizer(directory, microsoft)
    config = settings.read_model_config(directory, name, architecture, tokenizer, microsoft, notes)
    return Checkpoint(directory, config, architecture, weights, tokenizer, microsoft, tuple(notes))


def locate(source: str) -> Path:
    """The directory itself, or the hub's files in huggingface_hub's cache."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{source} is a file; a checkpoint is the directory that holds it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise CheckpointError(f"there is no directory {source}")
    return _download(source)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # here alone: a directory needs no hub

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # network and hub errors come from half a dozen libraries
        raise CheckpointError(f"{hub_id} is no directory and cannot be had from the hub: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Another library's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in one file or in shards, as stored."""
    names = [WEIGHTS]
    if (directory / INDEX).exists():
        names = sorted(set(read_json(directory / INDEX).get("weight_map", {}).values()))
    elif not (directory / WEIGHTS).exists():
        raise CheckpointError(f"{directory} holds no {WEIGHTS}")
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= load_file(directory / name)
        except FileNotFoundError as error:
            raise CheckpointError(f"{name} is missing in {directory}") from error
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{name} in {directory} is damaged or incomplete: {_reason(error)}") from error
    return weights


def settle_embedding(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One embedding under its native name, and the head beside it only where it is really another matrix."""
    present = [name for name in TIED if name in weights]
    if not present:
        raise CheckpointError("the checkpoint has no token embedding, so it is not Florence-2 or not complete")
    embedding = weights[present[0]]
    for name in present:
        if name != HEAD and not torch.equal(weights[name], embedding):
            raise CheckpointError(f"{name} differs from {present[0]}, but Florence-2 has one embedding")
    settled = {name: tensor for name, tensor in weights.items() if name not in TIED}
    settled[EMBEDDING] = embedding
    if HEAD in weights and not torch.equal(weights[HEAD], embedding):
        settled[HEAD] = weights[HEAD]
    return settled


def read_architecture(config_file: dict[str, Any], rows: int, notes: list[str]) -> Florence2Config:
    """transformers' config, with the vocabulary size that the embedding really has."""
    try:
        architecture = Florence2Config.from_dict(layouts.native_config(config_file))
    except Exception as error:  # transformers validates with a crowd of exception types
        raise CheckpointError(f"config.json is not a Florence-2 configuration: {_reason(error)}") from error
    # transformers, too, keeps a head that differs apart, but fills missing copies at random if told not to tie.
    architecture.tie_word_embeddings = architecture.text_config.tie_word_embeddings = True
    said = architecture.text_config.vocab_size
    if rows != said:
        notes.append(f"config.json says {said} tokens, the embedding has {rows}, which is used")
        architecture.text_config.vocab_size = rows
    return architecture


def expected_weights(architecture: Florence2Config) -> dict[str, Tensor]:
    """Names and shapes of transformers' model; the tensors hold no data."""
    try:
        with torch.device("meta"):
            return Florence2ForConditionalGeneration(architecture).state_dict()
    except Exception as error:  # whatever the modules' constructors trip over
        raise CheckpointError(f"config.json does not describe a working model: {_reason(error)}") from error


def check_weights(weights: Mapping[str, Tensor], architecture: Florence2Config, notes: list[str]) -> None:
    """Names and shapes against the architecture. Unknown weights are noted, missing or misshapen ones refused."""
    expected = expected_weights(architecture)
    missing = sorted(expected.keys() - weights.keys() - set(TIED))
    if missing:
        raise CheckpointError(f"the checkpoint lacks {len(missing)} weights, among them {missing[0]}")
    for name in sorted(expected.keys() & weights.keys()):
        if weights[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{name} is {list(weights[name].shape)}, but config.json asks for {list(expected[name].shape)}"
            )
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        notes.append(f"{len(unknown)} weights are not Florence-2's and are left out, among them {unknown[0]}")


def read_tokenizer(directory: Path, microsoft: bool) -> Tokenizer:
    """tokenizer.json with all of Florence-2's tokens, and without the padding or truncation training may leave."""
    path = directory / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"tokenizer.json is missing in {directory}")
    try:
        tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise CheckpointError(f"tokenizer.json in {directory} cannot be read: {_reason(error)}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if microsoft:
        layouts.complete_tokenizer(tokenizer)
    return tokenizer
