"""The process between us and tritonserver. It leaves nothing behind, whoever is killed and however.

    we are killed            our end of its standard input closes, and it stops tritonserver
    tritonserver is killed   it kills the orphaned stubs, which ignore SIGTERM
    it is killed             the kernel kills tritonserver, the stubs follow by themselves, and we remove the rest

Run by EmbeddedServer as `python -I supervisor.py FOLDER SHM_PREFIX STOP_SECONDS COMMAND...`, with nothing but the
standard library.
Exits with tritonserver's exit code, or 128 + N when signal N ended it.
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
    """Runs `command` until it ends, standard input closes or SIGTERM arrives; then removes all it left.

    The second SIGTERM kills what the first asked to stop.
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
    """Runs in the child before it becomes tritonserver."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK if hard == resource.RLIM_INFINITY else min(STACK, hard), hard))


def _close_to_other_users(shm_prefix: str) -> None:
    """Triton lets all users of the machine read the shared memory through which callers' pictures go."""
    for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            region.chmod(0o600)


def remove_leftovers(folder: Path, shm_prefix: str) -> None:
    """Removes a dead server's folder and its shared memory. Does no harm when they are gone already."""
    for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _input_closed() -> bool:
    """Nothing is ever written to our standard input, so it becomes readable only by being closed."""
    return bool(select.select([0], [], [], POLL_SECONDS)[0])


def _kill_group(group: int) -> None:
    """Stubs stay in tritonserver's process group. Waits for them, so that their memory is free when we return."""
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
    """As a shell reports it."""
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(run(sys.argv[4:], Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
