"""Checks on an NVIDIA GPU: `pytest tests/gpu`, or `--device cpu` to run on a CPU what makes sense there.

Without a GPU, and without `--device`, all of it is skipped. It is no part of `make test`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from florence2.server.gpu import driver_cuda

ROOT = Path(__file__).parents[2]
NO_GPU = "needs an NVIDIA GPU, or --device cpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test here as `gpu`, and skip it where there is nothing to run it on."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("gpu")
            if config.getoption("--device") is None and driver_cuda() is None:
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Return cuda or cpu."""
    asked = request.config.getoption("--device")
    if asked != "cpu":
        import torch

        assert torch.cuda.is_available(), "there is a driver, and torch cannot use it: see florence2.server.gpu"
        torch.backends.cudnn.allow_tf32 = False  # transformers' convolutions are the reference for float32
    return "cpu" if asked == "cpu" else "cuda"


@pytest.fixture
def cuda(device: str) -> str:
    """Return the device of a test that makes no sense on a CPU."""
    if device == "cpu":
        pytest.skip("is about CUDA itself")
    return device


@pytest.fixture(scope="session")
def options(device: str) -> argparse.Namespace:
    """Return the options with which bench.gpu builds engines."""
    return argparse.Namespace(device=device, small=True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """exported(precision): the bundled checkpoint's repository for GPUs."""
    folder, done = tmp_path_factory.mktemp("exported"), set[str]()

    def export(precision: str) -> Path:
        repository = folder / precision
        if precision not in done:
            command = ["-m", "export", ROOT / "demo" / "checkpoint", "--target", "gpu", "--precision", precision]
            subprocess.run([sys.executable, *command, "--repository", repository], cwd=ROOT, check=True)
            done.add(precision)
        return repository

    return export
