"""The model processes of a running tritonserver, found by their command lines. Triton does not notice when one dies.

Called by EmbeddedServer, and by tests that kill them.
"""

from __future__ import annotations

from pathlib import Path

STUB = b"triton_python_backend_stub"


def model_processes(folder: Path) -> dict[int, str]:
    """Process id -> model, of the server that runs in `folder`."""
    repository = folder / "repository"
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        words = _command(process)
        if len(words) > 1 and words[0].endswith(STUB) and Path(words[1].decode()).is_relative_to(repository):
            found[int(process.name)] = Path(words[1].decode()).relative_to(repository).parts[0]
    return found


def is_alive(process: int) -> bool:
    """Whether it is still a model's process; a dead one that nobody waited for has no command line."""
    return _command(Path(f"/proc/{process}"))[0].endswith(STUB)


def _command(process: Path) -> list[bytes]:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]
