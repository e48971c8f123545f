"""The stubs, which are the processes of Python models: how many a repository needs, and those of a running server.

Triton does not notice when one dies, so EmbeddedServer watches them.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from florence2.server.installation import STUB, Installation
from florence2.server.streaming import read_config


def model_processes(folder: Path) -> dict[int, str]:
    """Return process id -> model for the server that runs in `folder`."""
    repository = folder / "repository"
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command: list[str] = process.info["cmdline"] or []  # None for a process that may not be looked at
        if len(command) > 1 and command[0].endswith(STUB) and Path(command[1]).is_relative_to(repository):
            found[process.pid] = Path(command[1]).relative_to(repository).parts[0]
    return found


def expected_processes(repository: Path, triton: Installation) -> int:
    """Return the number of processes: one for each instance of each served version of a model that runs in Python.

    Raise ServerError if a configuration cannot be read.
    """
    processes = 0
    for path in repository.glob("*/config.pbtxt"):
        config = read_config(path)
        if triton.runs_in_python(config.backend):
            versions = sum(version.name.isdecimal() for version in path.parent.iterdir())
            served = min(versions, config.version_policy.latest.num_versions or 1)
            processes += served * (sum(group.count or 1 for group in config.instance_group) or 1)
    return processes


def is_alive(process: int) -> bool:
    """Return whether it is still a model's process. A dead one that was not waited for has no command line."""
    try:
        return bool(command := psutil.Process(process).cmdline()) and command[0].endswith(STUB)
    except psutil.Error:
        return False
