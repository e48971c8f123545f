"""The language model's weights as the decoder's engine loads them. Called by `export.pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.layouts import HEAD

PREFIX = "model.language_model."


def language_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Native names without their prefix, in float32; `lm_head.weight` only if the checkpoint has its own."""
    tensors = {name.removeprefix(PREFIX): weights[name] for name in weights if name.startswith((PREFIX, HEAD))}
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}


def export_language_model(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file(language_tensors(weights), path)
    path.chmod(0o644)  # safetensors makes it private, but the server may run as another user
