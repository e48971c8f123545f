"""What tritonserver starts with: its command line, its environment, and the shared memory it needs."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import triton_to_np_dtype

from florence2.errors import ServerError
from florence2.server.addresses import Addresses
from florence2.server.installation import Installation
from florence2.server.options import ServingOptions
from florence2.server.streaming import read_config
from florence2.server.supervisor import SHARED_MEMORY

MIB = 2**20
# Enough to load the large checkpoint from a slow disk. A stub that dies is noticed at once nevertheless.
LOAD_SECONDS = 600
# A process exchanges tensors with tritonserver in a region of /dev/shm of its own. It starts with Triton's default,
# shm-default-byte-size, and grows in these steps, which hold all of a request in base and large, and never shrinks.
# Without room to grow, processes die of SIGBUS in the middle of a request.
SHM_DEFAULT = MIB
SHM_GROWTH = 32 * MIB
# APIs that change the server, or reach into the memory that its models share. Clients have no use for them.
MODEL_CONTROL = "model-repository"
CLOSED_APIS = ("shared-memory", MODEL_CONTROL, "logging", "trace")
# NAME=VALUE of the header that opens the closed APIs. No header can contain a line break, so no client can send it; it
# is visible in `ps` and need not be secret. Triton names the header when it refuses a request.
UNSENDABLE_HEADER = "disabled=\n"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def command_line(
    triton: Installation, repository: Path, shm_prefix: str, addresses: Addresses, options: ServingOptions
) -> list[str]:
    """Return tritonserver's command line. `repository` is what it reads: the mirror, except under model control."""
    # Model control is open only over gRPC: over HTTP, any web page in a browser on this machine could send the request,
    # together with files to run.
    closed_over_grpc = [api for api in CLOSED_APIS if not (options.model_control and api == MODEL_CONTROL)]
    settings = {
        "model-repository": repository,
        **({"model-control-mode": "explicit", "load-model": "*"} if options.model_control else {}),
        "backend-directory": triton.backends,
        "http-address": addresses.host,
        "http-port": addresses.http_port,
        "grpc-address": addresses.host,
        "grpc-port": addresses.grpc_port,
        "metrics-address": addresses.host,
        "metrics-port": addresses.metrics_port,
        "allow-gpu-metrics": str(triton.gpu).lower(),
        "http-restricted-api": f"{','.join(CLOSED_APIS)}:{UNSENDABLE_HEADER}",
        "grpc-restricted-protocol": f"{','.join(closed_over_grpc)}:{UNSENDABLE_HEADER}",
        "exit-timeout-secs": options.drain_seconds,
    }
    if options.connection_age:
        settings["grpc-max-connection-age"] = 1000 * options.connection_age
    if options.cache_mib and not triton.runs_in_python("onnxruntime"):  # ours has a better one (docs/adr/0008)
        settings["cache-directory"] = triton.caches
        settings["cache-config"] = f"local,size={options.cache_mib * MIB}"
    traces = {}
    if options.traces:
        # A trace that a client's `traceparent` begins goes on, and others begin here.
        traces = {"mode": "opentelemetry", "opentelemetry,url": options.traces, "level": "TIMESTAMPS", "rate": 1}
    python_backend = {
        "shm-region-prefix-name": shm_prefix,
        "shm-default-byte-size": SHM_DEFAULT,
        "shm-growth-byte-size": SHM_GROWTH,
        "stub-timeout-seconds": LOAD_SECONDS,
    }
    return [
        str(triton.tritonserver),
        # Our configs are complete, and auto-completion would start every model twice.
        "--disable-auto-complete-config",
        *(f"--{key}={value}" for key, value in settings.items()),
        *(f"--backend-config=python,{key}={value}" for key, value in python_backend.items()),
        *(f"--trace-config={key}={value}" for key, value in traces.items()),
    ]


def environment(triton: Installation, gpus: Sequence[str] = ()) -> dict[str, str]:
    """Return our environment with this Python first on PATH, the installation's libraries, and one thread per core.

    Of all GPUs only `gpus` are visible there, if it names any.

    The stubs run the first `python3` on PATH and so find the packages of our virtual environment. Thread counts
    that the user has set stay.
    """
    libraries = (*map(str, triton.libraries), os.environ.get("LD_LIBRARY_PATH"))
    return {
        "OMP_NUM_THREADS": str(usable_cores()),  # for torch in the decoder, and onnxruntime in its stand-in
        # Threads that spin while they wait made a decoder step ten times slower when the two cores had other work too:
        # 532 instead of 54 ms (base geometry, 2 threads, next to one busy process, torch 2.13).
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "TOKENIZERS_PARALLELISM": "false",
        **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}),
    }


def usable_cores() -> int:
    """Return how many cores this process may use. Libraries count the machine's, too many in a small container."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()  # "max 100000" without a limit
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return cores


def expected_regions(repository: Path, triton: Installation) -> list[int]:
    """Return the bytes of /dev/shm that each model process will need, as `region_bytes` counts them.

    A model that runs in Python has one process per instance of each served version. Raise ServerError if a
    configuration cannot be read.
    """
    regions = []
    for path in repository.glob("*/config.pbtxt"):
        config = read_config(path)
        if triton.runs_in_python(config.backend):
            versions = sum(version.name.isdecimal() for version in path.parent.iterdir())
            served = min(versions, config.version_policy.latest.num_versions or 1)
            processes = served * (sum(group.count or 1 for group in config.instance_group) or 1)
            regions += [region_bytes(config)] * processes
    return regions


def region_bytes(config: ModelConfig) -> int:
    """Return what one process of a model takes of /dev/shm once it has grown: 33 MiB in base, whatever the model.

    It holds the inputs and outputs of a full batch, and one tensor may fall into the gap at the region's end. A GPU's
    vision encoder with the large model has 8 * (768 * 768 * 3 + 577 * 1024 * 4) bytes = 31.5 MiB, and grew twice.
    Tensors of any length count as none.
    """
    tensors = [
        math.prod(tensor.dims) * np.dtype(triton_to_np_dtype(DataType.Name(tensor.data_type)[len("TYPE_") :])).itemsize
        for tensor in (*config.input, *config.output)
        if tensor.data_type != DataType.TYPE_STRING and min(tensor.dims) > 0
    ]
    batch = config.max_batch_size if config.HasField("dynamic_batching") else 1
    held = batch * sum(tensors) + max(tensors, default=0)
    return SHM_DEFAULT + SHM_GROWTH * max(1, math.ceil(held / SHM_GROWTH))


def wants_gpu(repository: Path) -> bool:
    """Return whether the repository was exported with `--target gpu`: a model names an accelerator on a GPU."""
    configs = (read_config(path) for path in repository.glob("*/config.pbtxt"))
    return any(config.optimization.execution_accelerators.gpu_execution_accelerator for config in configs)


def require_shared_memory(regions: Sequence[int]) -> None:
    """Raise ServerError if shared memory does not suffice for the regions in bytes, one for each model process."""
    needed = sum(regions)
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        raise ServerError(
            "/dev/shm is missing; tritonserver and its models exchange tensors there, so mount a tmpfs"
        ) from error
    if not os.access(SHARED_MEMORY, os.W_OK):
        raise ServerError(
            "/dev/shm is not writable; tritonserver and its models exchange tensors there, so change its permissions"
        )
    if free < needed:
        raise ServerError(
            f"/dev/shm has {free // MIB} MiB free and the {len(regions)} model processes need {needed // MIB} MiB; "
            f"in Docker start the container with --shm-size={math.ceil(needed / 2**30)}g"
        )
