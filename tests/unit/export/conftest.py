"""Fixtures: the bundled checkpoint, read once and exported once, and copies of it to damage or rearrange."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from florence2_export.checkpoint import Checkpoint, read_checkpoint
from florence2_export.pipeline import export_checkpoint

DEMO = Path(__file__).parents[3] / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def demo() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return read_checkpoint(str(DEMO))


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> tuple[Path, list[str]]:
    """Return the repository of the bundled checkpoint in float32, and the lines that the export printed."""
    repository = tmp_path_factory.mktemp("exported") / "repository"
    said: list[str] = []
    assert export_checkpoint(str(DEMO), repository, output=said.append, precision="float32"), said
    return repository, said


class Copy:
    """A copy of the bundled checkpoint to change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(DEMO, path)

    def edit(self, name: str, change: Callable[[dict], None]) -> None:
        values = json.loads((self.path / name).read_text())
        change(values)
        (self.path / name).write_text(json.dumps(values))

    def reweigh(self, change: Callable[[dict], None]) -> None:
        weights = load_file(self.path / "model.safetensors")
        change(weights)
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in weights.items()}, self.path / "model.safetensors"
        )

    def read(self) -> Checkpoint:
        return read_checkpoint(str(self.path))


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path / "checkpoint")
