"""From a folder of an exported decoder (`florence2.json`, `model.safetensors`) to a ready `LanguageModel`.

The file's metadata says which precision it holds; `florence2_export.language` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from florence2.config import ModelConfig
from florence2.engine.model import LanguageModel
from florence2.errors import CheckpointError

FILE_NAME = "model.safetensors"


def load_language_model(directory: Path, config: ModelConfig, device: torch.device) -> LanguageModel:
    """Raises CheckpointError if the file is missing or damaged, or does not fit `config` or the device."""
    try:
        with safe_open(directory / FILE_NAME, framework="pt", device=str(device)) as file:
            precision = (file.metadata() or {}).get("precision", "float32")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{FILE_NAME} in {directory} cannot be read: {error}") from error
    if precision == "int8" and device.type != "cpu":
        raise CheckpointError(f"{FILE_NAME} in {directory} holds int8 weights, which are for CPUs; export it anew")
    return build_language_model(tensors, config, precision)


def build_language_model(tensors: Mapping[str, Tensor], config: ModelConfig, precision: str) -> LanguageModel:
    """The model around these very tensors. Raises CheckpointError if they are not those of `config`."""
    with torch.device("meta"):  # no memory is filled with random weights only to be overwritten
        model = LanguageModel(config, tied="lm_head.weight" not in tensors, precision=precision)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the language model's weights do not fit {config.source}: {error}") from error
    return model.pack()
