"""Run tritonserver for EmbeddedServer and leave nothing behind, whichever of the three processes is killed.

    EmbeddedServer's is killed   standard input closes, and the supervisor stops tritonserver
    tritonserver is killed       the supervisor kills the orphaned stubs, which ignore SIGTERM
    the supervisor is killed     the kernel kills tritonserver, the stubs end by themselves, and EmbeddedServer removes
                                 the rest

EmbeddedServer runs this file as `python -I supervisor.py FOLDER SHM_PREFIX STOP_SECONDS COMMAND...`, so it imports only
the standard library. It exits with tritonserver's exit code, or with 128 + N if signal N ended tritonserver.
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

    A second SIGTERM kills what the first one asked to stop. Return the exit code as a shell reports it.
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
        # EmbeddedServer never writes to our standard input, so it becomes readable only when it closes.
        while server.poll() is None and not terminations and not select.select([0], [], [], POLL_SECONDS)[0]:
            # Keep other users out of the shared memory, where Triton would let them read clients' images.
            for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
                with contextlib.suppress(FileNotFoundError):
                    region.chmod(0o600)
        server.terminate()
        _wait_until(lambda: server.poll() is not None or len(terminations) > 1, stop_seconds)
        server.kill()
        status = server.wait()
        return 128 - status if status < 0 else status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # the stubs, which stay in tritonserver's process group
        _wait_until(_no_children_left, KILL_SECONDS)  # their memory is free then
        remove_leftovers(folder, shm_prefix)


def _prepare(libc: ctypes.CDLL) -> None:
    """Make the child die with the supervisor and enlarge its stack, before it becomes tritonserver."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK if hard == resource.RLIM_INFINITY else min(STACK, hard), hard))


def remove_leftovers(folder: Path, shm_prefix: str) -> None:
    """Remove a dead server's folder and its shared memory, if they still exist."""
    for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _no_children_left() -> bool:
    """Reap a child that has ended, if there is one, and return whether there was no child at all."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(run(sys.argv[4:], Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
