"""Share the bundled checkpoint and its exported repository, and mark each test with the name of its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), help="of tests/gpu; default: the GPU, or skip them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in tests/live as `live` and everything in tests/stress as `stress`."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("live", "stress"):
            item.add_marker(folder)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in float32, which answers exactly like transformers. Tests must not change it."""
    folder = tmp_path_factory.mktemp("exported") / "model_repository"
    command = [sys.executable, "-m", "export", checkpoint, "--repository", folder, "--precision", "float32"]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder
