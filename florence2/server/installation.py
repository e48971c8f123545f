"""Find a tritonserver: the nvidia-pytriton wheel's, or a complete installation as in NVIDIA's container.

Beware of importing pytriton itself: it is slow to import and serves another purpose.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from florence2.errors import ServerError
from florence2.server import machine

INSTALL = "run: pip install 'florence2-triton[serve]'"
STUB = "triton_python_backend_stub"  # Triton's program for Python models: one process for each instance


@dataclass(frozen=True)
class Installation:
    """A tritonserver that is ready to start."""

    tritonserver: Path
    backends: Path
    caches: Path
    libraries: tuple[Path, ...] = ()  # folders for the loader, ahead of those in the environment
    gpu: bool = True  # whether it reports metrics of GPUs

    def runs_in_python(self, backend: str) -> bool:
        """Return whether each instance of a model with this backend has a process of its own."""
        return backend == "python" or (self.backends / backend / "model.py").is_file()


@dataclass(frozen=True)
class Wheel:
    """Paths in the installed wheel, and the libpython that its stub needs; `folder.assemble` makes an Installation."""

    tritonserver: Path
    libraries: Path  # shared libraries that the wheel brings for its own binaries
    python_backend: Path
    caches: Path
    stub: Path
    libpython: Path


def find_wheel() -> Wheel:
    """Return the paths in the nvidia-pytriton wheel. Raise ServerError, with the remedy, if something is missing."""
    if problem := machine.missing():
        raise ServerError(problem)
    _require_python3_next_to_python()
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"nvidia-pytriton, which contains the embedded Triton, is not installed; {INSTALL}")
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    libpython = machine.find_libpython()
    assert libpython is not None  # machine.missing() has looked
    wheel = Wheel(
        tritonserver=root / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=root / "backends" / "python",
        caches=root / "caches",
        stub=root / "python_backend_stubs" / machine.python_version() / STUB,
        libpython=libpython,
    )
    for needed in (wheel.tritonserver, wheel.stub):
        if not needed.is_file():
            raise ServerError(f"the installed nvidia-pytriton lacks {needed.relative_to(package)}; {INSTALL}")
    return wheel


def find_installation(root: Path) -> Installation:
    """Return the installation in `root`, such as /opt/tritonserver. Raise ServerError if it is not complete."""
    _require_python3_next_to_python()
    found = Installation(root / "bin" / "tritonserver", root / "backends", root / "caches")
    for needed in (found.tritonserver, found.backends / "python" / STUB, found.backends / "onnxruntime"):
        if not needed.exists():
            raise ServerError(
                f"{root} is not a complete installation of Triton: it lacks {needed.relative_to(root)}; "
                "NVIDIA's container has one in /opt/tritonserver"
            )
    return found


def _require_python3_next_to_python() -> None:
    """Raise ServerError if models would run in another Python environment.

    The stub ignores PYTHONPATH and PYTHONHOME and adopts the environment of the first `python3` on PATH.
    """
    python3 = Path(sys.executable).with_name("python3")
    if not (python3.exists() and python3.samefile(sys.executable)):
        raise ServerError(
            f"models run in the python3 next to {sys.executable}, which is missing or another interpreter; "
            "use a virtual environment"
        )
