"""From the folder of an exported decoder (`florence2.json`, `model.safetensors`) to a backend that is ready to decode.

The file's metadata says which precision it holds; `florence2_export.language` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from florence2.config import ModelConfig
from florence2.engine.backend import Backend
from florence2.engine.bart import LanguageModel
from florence2.errors import CheckpointError, ServerError

FILE_NAME = "model.safetensors"


def load_language_model(directory: Path, config: ModelConfig, device: torch.device) -> LanguageModel:
    """Return the model of a folder, on `device`.

    Raises CheckpointError if the file is missing or damaged, or does not fit `config` or the device; ServerError if
    torch cannot use the device.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ServerError(
            f"the decoder was placed on a GPU, and the installed torch ({torch.__version__}) cannot use it"
        )
    try:
        with safe_open(directory / FILE_NAME, framework="pt", device=str(device)) as file:
            precision = (file.metadata() or {}).get("precision", "float32")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{FILE_NAME} in {directory} cannot be read: {error}") from error
    if precision == "int8" and device.type != "cpu":
        raise CheckpointError(f"{FILE_NAME} in {directory} holds int8 weights, which only run on CPUs; export it again")
    return build_language_model(tensors, config, precision)


def build_language_model(tensors: Mapping[str, Tensor], config: ModelConfig, precision: str) -> LanguageModel:
    """Return a model that holds these tensors themselves. Raises CheckpointError if they do not fit `config`."""
    with torch.device("meta"):  # allocates nothing: `assign` below puts the tensors in place
        model = LanguageModel(config, untied=tensors.keys(), precision=precision)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the language model's weights do not fit {config.source}: {error}") from error
    return model.eval().requires_grad_(False)


def create_backend(
    model: LanguageModel, config: ModelConfig, rows: int = 24, memory_bytes: int | None = None
) -> Backend:
    """Return the backend for the device that holds the model's weights, which it takes over.

    With `memory_bytes` it has fewer than `rows` rows if it would take more next to the weights, but at least one.
    """
    backend: type[Backend]
    if model.device.type == "cpu":  # imported here: a CPU needs numba, a GPU does not
        from florence2.engine.cpu.backend import CpuBackend as backend
    else:
        from florence2.engine.cuda.backend import CudaBackend as backend
    if memory_bytes is not None:
        rows = rows_within(memory_bytes, backend, model, config, rows)
    return backend(model, config, rows)


def rows_within(memory_bytes: int, backend: type[Backend], model: LanguageModel, config: ModelConfig, rows: int) -> int:
    """Return the number of rows, at most `rows` and at least one, that such a backend has room for."""
    return next((few for few in range(rows, 1, -1) if backend.memory_bytes(model, config, few) <= memory_bytes), 1)
