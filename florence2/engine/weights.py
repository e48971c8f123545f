"""From a folder of an exported decoder (`florence2.json`, `model.safetensors`) to a ready `LanguageModel`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from florence2.config import ModelConfig
from florence2.engine.model import LanguageModel
from florence2.errors import CheckpointError

FILE_NAME = "model.safetensors"


def load_language_model(directory: Path, config: ModelConfig, device: torch.device) -> LanguageModel:
    """Raises CheckpointError if the file is missing or damaged, or its tensors are not those of `config`."""
    try:
        tensors = load_file(directory / FILE_NAME, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{FILE_NAME} in {directory} cannot be read: {error}") from error
    return build_language_model(tensors, config)


def build_language_model(tensors: dict[str, Tensor], config: ModelConfig) -> LanguageModel:
    """The model around these very tensors. Raises CheckpointError if they are not those of `config`."""
    with torch.device("meta"):  # no memory is filled with random weights only to be overwritten
        model = LanguageModel(config, tied="lm_head.weight" not in tensors)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the language model's weights do not fit {config.source}: {error}") from error
    return model.eval().requires_grad_(False)
