"""The process between us and tritonserver. It leaves nothing behind, whichever process is killed and however.

    we are killed            our end of its standard input closes, and it stops tritonserver
    tritonserver is killed   it kills the orphaned stubs, which ignore SIGTERM
    it is killed             the kernel kills tritonserver, the stubs end by themselves, and we remove the rest

EmbeddedServer runs it as `python -I supervisor.py FOLDER SHM_PREFIX STOP_SECONDS COMMAND...`, so it imports only the
standard library. It exits with tritonserver's exit code, or 128 + N if signal N ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
UNLOAD_SECONDS = 10  # after the last request
KILL_SECONDS = 5
POLL_SECONDS = 0.1
# Triton 2.51 puts twice the body of a form on a stack: with the usual 8 MiB, `curl -d` of 5 MB ended the server.
STACK = 64 * 2**20  # as NVIDIA starts its containers

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36


def run(command: list[str], folder: Path, shm_prefix: str, stop_seconds: float) -> int:
    """Run `command` until it ends, standard input closes or SIGTERM arrives, then remove everything it left.

    A second SIGTERM kills what the first one asked to stop. Return the exit code.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphaned stubs become our children
    terminations: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: terminations.append(number))
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _prepare(libc),
    )
    try:
        while server.poll() is None and not terminations and not _input_closed():
            _close_to_other_users(shm_prefix)
        server.terminate()
        _wait_until(lambda: server.poll() is not None or len(terminations) > 1, stop_seconds)
        server.kill()
        return _exit_code(server.wait())
    finally:
        _kill_group(server.pid)
        remove_leftovers(folder, shm_prefix)


def _prepare(libc: ctypes.CDLL) -> None:
    """Tie the child to us and enlarge its stack, before it becomes tritonserver."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK if hard == resource.RLIM_INFINITY else min(STACK, hard), hard))


def _close_to_other_users(shm_prefix: str) -> None:
    """Take the shared memory from other users, whom Triton lets read the images of clients in it."""
    for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            region.chmod(0o600)


def remove_leftovers(folder: Path, shm_prefix: str) -> None:
    """Remove a dead server's folder and its shared memory, if they are still there."""
    for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _input_closed() -> bool:
    """Return whether standard input is closed. Nothing is ever written to it, so only that makes it readable."""
    return bool(select.select([0], [], [], POLL_SECONDS)[0])


def _kill_group(group: int) -> None:
    """Kill the stubs, which stay in tritonserver's process group, and wait until their memory is free."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    _wait_until(_no_children_left, KILL_SECONDS)


def _no_children_left() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)


def _exit_code(status: int) -> int:
    """Return the exit code as a shell reports it."""
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(run(sys.argv[4:], Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
