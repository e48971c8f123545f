"""A tritonserver ready to be started: the wheel's, assembled by folder.py, or that of NVIDIA's container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from florence2.errors import ServerError
from florence2.server.wheel import require_python3_beside_us


@dataclass(frozen=True)
class Installation:
    tritonserver: Path
    backends: Path
    caches: Path
    libraries: tuple[Path, ...] = ()  # folders for the loader, before those of the environment
    gpu: bool = True  # whether it can tell of GPUs

    def runs_in_python(self, backend: str) -> bool:
        """Whether each instance of a model with this backend has a process of its own."""
        return backend == "python" or (self.backends / backend / "model.py").is_file()


def find_installation(root: Path) -> Installation:
    """What a complete installation such as the container's /opt/tritonserver holds. ServerError names what it lacks."""
    require_python3_beside_us()
    found = Installation(root / "bin" / "tritonserver", root / "backends", root / "caches")
    stub = found.backends / "python" / "triton_python_backend_stub"
    for needed in (found.tritonserver, stub, found.backends / "onnxruntime"):
        if not needed.exists():
            raise ServerError(
                f"{root} is no complete installation of Triton, it lacks {needed.relative_to(root)}; "
                "NVIDIA's container has one in /opt/tritonserver"
            )
    return found
