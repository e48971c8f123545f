"""What tritonserver is started with: its command line, its environment, and the shared memory it needs."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from florence2.errors import ServerError
from florence2.server.addresses import Addresses
from florence2.server.installation import Installation
from florence2.server.supervisor import SHARED_MEMORY

MIB = 2**20
# Loading the large checkpoint from a slow disk must fit in. A stub that dies is noticed at once all the same.
LOAD_SECONDS = 600
# The biggest tensor, a full batch of the large model's features, is 8 * 577 * 1024 * 4 bytes = 18 MiB; a region that
# grows by less grows again and again.
SHM_GROWTH = 32 * MIB
# Of each model process: what it begins with, grown once. With less they die of SIGBUS in the middle of a request.
SHM_PER_PROCESS = MIB + SHM_GROWTH
# Features of 145 pictures of the base model or 109 of large, float32.
CACHE_MIB = 256
# What callers have no business with: it changes the server, or reaches into the memory that its models share.
MODEL_CONTROL = "model-repository"
CLOSED_APIS = ["shared-memory", MODEL_CONTROL, "logging", "trace"]
# No header can hold a line break, so nobody can send this key; it need not be secret, which in `ps` it could not be.
NO_KEY = "nobody=\n"
# What requests that still run get when the server is stopped. Containers' managers kill after 10 to 30.
DRAIN_SECONDS = 10
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def command_line(
    triton: Installation,
    repository: Path,
    shm_prefix: str,
    addresses: Addresses,
    model_control: bool,
    cache_mib: int,
    drain_seconds: int = DRAIN_SECONDS,
    connection_age: int | None = None,
) -> list[str]:
    """`model_control`: clients may have models loaded anew, and unloaded, while the server runs.

    `cache_mib`: of the response cache, which the vision encoder's config asks for; 0 is none. `drain_seconds`: what
    requests that still run get when it stops. `connection_age`: seconds until callers by gRPC are made to connect anew.
    """
    options = {
        "model-repository": repository,
        **({"model-control-mode": "explicit", "load-model": "*"} if model_control else {}),
        "backend-directory": triton.backends,
        "http-address": addresses.host,
        "http-port": addresses.http_port,
        "grpc-address": addresses.host,
        "grpc-port": addresses.grpc_port,
        "metrics-address": addresses.host,
        "metrics-port": addresses.metrics_port,
        "allow-gpu-metrics": str(triton.gpu).lower(),
        "http-restricted-api": _closed(CLOSED_APIS),
        # Model control is by gRPC alone: any page in a browser on this machine could send the HTTP request, and files
        # to run with it.
        "grpc-restricted-protocol": _closed(api for api in CLOSED_APIS if not (model_control and api == MODEL_CONTROL)),
        "exit-timeout-secs": drain_seconds,
        **({"grpc-max-connection-age": 1000 * connection_age} if connection_age else {}),
    }
    python_backend = {
        "shm-region-prefix-name": shm_prefix,
        "shm-growth-byte-size": SHM_GROWTH,
        "stub-timeout-seconds": LOAD_SECONDS,
    }
    return [
        str(triton.tritonserver),
        # Our configs are complete. Completing them all the same would start every model twice.
        "--disable-auto-complete-config",
        *(f"--{key}={value}" for key, value in options.items()),
        *(f"--backend-config=python,{key}={value}" for key, value in python_backend.items()),
        *([f"--cache-directory={triton.caches}", f"--cache-config=local,size={cache_mib * MIB}"] if cache_mib else []),
    ]


def _closed(apis: Iterable[str]) -> str:
    return f"{','.join(apis)}:{NO_KEY}"


def environment(triton: Installation) -> dict[str, str]:
    """Ours, with this interpreter first on PATH, the installation's libraries, and as many threads as there are cores.

    The stubs take `python3` on PATH for their own and so see the packages of our virtual environment. What the user
    set of the thread counts stays.
    """
    threads = str(usable_cores())
    libraries = (*map(str, triton.libraries), os.environ.get("LD_LIBRARY_PATH"))
    return {
        "OMP_NUM_THREADS": threads,  # of torch in the decoder and, by our stand-in, of onnxruntime
        # Waiting threads that spin made a decoder step ten times slower when the two cores had other work as well:
        # 532 against 54 ms, base geometry, 2 threads, beside one busy process (torch 2.13).
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def usable_cores() -> int:
    """Cores that this process may use. Libraries count the machine's, which is far too many in a small container."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()  # "max 100000" without a limit
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return cores


def require_shared_memory(processes: int) -> None:
    """Raises ServerError when tensors could not travel between tritonserver and so many model processes."""
    needed = processes * SHM_PER_PROCESS
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        raise ServerError("/dev/shm is missing, where tritonserver and its models exchange tensors") from error
    if not os.access(SHARED_MEMORY, os.W_OK):
        raise ServerError("/dev/shm is not writable, where tritonserver and its models exchange tensors")
    if free < needed:
        raise ServerError(
            f"/dev/shm has {free // MIB} MiB free and the {processes} model processes need {needed // MIB} MiB; "
            "in Docker start the container with --shm-size=1g"
        )
