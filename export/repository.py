"""The model repository on disk: a copy of model_repository/ with a checkpoint's true dims, swapped in by rename.

Called by `export.pipeline`: build in `staging`, then `install`. An export that fails leaves the target untouched.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import vision
from florence2.config import ImageConfig
from florence2.errors import CheckpointError

TEMPLATE = Path(__file__).parents[1] / "model_repository"
TEMPLATE_NAME = "florence2"
ROLES = ("preprocess", "vision", "decoder", "postprocess", "ensemble")
CONFIG = "config.pbtxt"


def check_target(target: Path, name: str) -> None:
    """Raises CheckpointError on a name Triton would not take and on the checkout's own repository."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise CheckpointError(f"the name {name!r} must consist of letters, digits, '_', '-' and '.'")
    if target.resolve() == TEMPLATE.resolve():
        raise CheckpointError(f"{target} is the source of every export and stays clean; choose another directory")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file, not a directory")


def version_directory(repository: Path, name: str, role: str) -> Path:
    return repository / f"{name}_{role}" / "1"


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A directory on the target's file system that disappears again, whatever happens."""
    target = target.resolve()
    place = target if target.is_mount() else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        stage = tempfile.mkdtemp(prefix=f".{target.name}-", dir=place)
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written: {error.strerror}") from error
    try:
        yield Path(stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def copy_template(repository: Path, name: str, dims: Mapping[str, list[int]]) -> None:
    """The five models under their new names, dims corrected, nothing generated yet."""
    for role in ROLES:
        source, model = TEMPLATE / f"{TEMPLATE_NAME}_{role}", repository / f"{name}_{role}"
        (model / "1").mkdir(parents=True)  # Triton wants it even where an ensemble's is empty
        for code in (source / "1").glob("*.py"):
            shutil.copyfile(code, model / "1" / code.name)
        committed = (source / CONFIG).read_text(encoding="utf-8")
        (model / CONFIG).write_text(adapt_config(committed, name, dims), encoding="utf-8")


def true_dims(image: ImageConfig, d_model: int) -> dict[str, list[int]]:
    """The tensors whose dims depend on the checkpoint."""
    return {vision.INPUT: [image.height, image.width, 3], vision.OUTPUT: [image.tokens, d_model]}


def adapt_config(text: str, name: str, dims: Mapping[str, list[int]]) -> str:
    """A config.pbtxt with models renamed and dims of the named tensors replaced; every other setting stays."""
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    config.name = _renamed(config.name, name)
    for step in config.ensemble_scheduling.step:
        step.model_name = _renamed(step.model_name, name)
    for tensor in (*config.input, *config.output):
        if tensor.name in dims:
            tensor.dims[:] = dims[tensor.name]
    heading = "# Written by `python -m export`; model_repository/ says why each value is what it is."
    return f"{heading}\n{text_format.MessageToString(config)}"


def _renamed(model: str, name: str) -> str:
    return name + model.removeprefix(TEMPLATE_NAME)


def install(stage: Path, target: Path) -> None:
    """Moves the staged models into the target, in place of those of the same names; all of them or none."""
    models = sorted(stage.iterdir())
    replaced = Path(tempfile.mkdtemp(dir=stage))
    created = not target.exists()
    moved: list[tuple[Path, Path]] = []
    try:
        target.mkdir(exist_ok=True)
        for model in models:
            if (target / model.name).exists():
                _move(target / model.name, replaced / model.name, moved)
            _move(model, target / model.name, moved)
    except BaseException as error:
        for source, destination in reversed(moved):
            destination.rename(source)
        if created:
            target.rmdir()
        if isinstance(error, OSError):
            raise CheckpointError(f"{target} cannot be written: {error.strerror}") from error
        raise


def _move(source: Path, destination: Path, moved: list[tuple[Path, Path]]) -> None:
    source.rename(destination)
    moved.append((source, destination))
