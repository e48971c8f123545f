"""The processes of Python models: how many a repository asks for, and those of a running tritonserver, found by their
command lines. Triton does not notice when one dies.

Called by EmbeddedServer, and by tests that kill them.
"""

from __future__ import annotations

from pathlib import Path

from florence2.server.installation import Installation

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


def expected_processes(repository: Path, triton: Installation) -> int:
    """One for each instance of a version's model. Raises ServerError for a configuration that cannot be read."""
    from florence2.server.streaming import read_config  # beware: make install imports us without protobuf

    processes = 0
    for path in repository.glob("*/config.pbtxt"):
        config = read_config(path)
        if triton.runs_in_python(config.backend):
            versions = sum(version.name.isdecimal() for version in path.parent.iterdir())
            served = min(versions, config.version_policy.latest.num_versions or 1)
            processes += served * (sum(group.count or 1 for group in config.instance_group) or 1)
    return processes


def is_alive(process: int) -> bool:
    """Whether it is still a model's process; a dead one that nobody waited for has no command line."""
    return _command(Path(f"/proc/{process}"))[0].endswith(STUB)


def _command(process: Path) -> list[bytes]:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]
