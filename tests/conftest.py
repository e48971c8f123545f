"""What many tests share: the bundled checkpoint, its exported repository and one running server, made once each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from florence2.server import EmbeddedServer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in float32, whose answers are transformers' own. Not to be changed by tests."""
    folder = tmp_path_factory.mktemp("exported") / "model_repository"
    command = [sys.executable, "-m", "export", checkpoint, "--repository", folder, "--precision", "float32"]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository, http_port=0, grpc_port=0, metrics_port=0, stream=True) as running:
        yield running
