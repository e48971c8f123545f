"""The competitors that are servers: a static batch on Triton, and this server in several forms."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from bench.compare.loads import BEAMS, Answer, Ask
from bench.harness import embedded_server
from bench.static_batch import generate
from florence2_client import Client

STATIC_BATCH = Path(__file__).parents[1] / "static_batch"


@contextlib.contextmanager
def batched(checkpoint: Path, precision: str) -> Iterator[Ask]:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        shutil.copytree(STATIC_BATCH, repository, ignore=shutil.ignore_patterns("__pycache__"))
        config = repository / "florence2_static" / "config.pbtxt"
        config.write_text(config.read_text().replace('"float32"', f'"{precision}"'))
        version = config.parent / "1"
        shutil.copy(generate.__file__, version)
        (version / "checkpoint").symlink_to(checkpoint.resolve(), target_is_directory=True)
        with embedded_server(repository) as server, asking(server.grpc_url, "florence2_static", [1, 1]) as ask:
            yield ask


@contextlib.contextmanager
def served(repository: Path) -> Iterator[Ask]:
    with embedded_server(repository) as server, asking(server.grpc_url, "florence2_ensemble", [1]) as ask:
        yield ask


@contextlib.contextmanager
def streaming(repository: Path) -> Iterator[Ask]:
    """Answer with streams, read to their ends: the server would finish one that is left, next to the next request."""
    with embedded_server(repository, stream=True) as server, Client(server.grpc_url) as client:

        def ask(image: bytes, prompt: str, limit: int) -> Answer:
            *_, last = client.stream(image, prompt, max_new_tokens=limit)
            return Answer(last.text, last.num_tokens)

        yield ask


@contextlib.contextmanager
def replicas(repository: Path, cores: list[list[int]]) -> Iterator[Ask]:
    """Start a server on each of these groups of cores, and send requests to them in turn."""
    ours = os.sched_getaffinity(0)
    available = sorted(ours)
    with contextlib.ExitStack() as stack:
        asks = []
        for group in cores:
            os.sched_setaffinity(0, {available[core % len(available)] for core in group})  # the server inherits it
            try:
                server = stack.enter_context(embedded_server(repository))
            finally:
                os.sched_setaffinity(0, ours)
            asks.append(stack.enter_context(asking(server.grpc_url, "florence2_ensemble", [1])))
        turns = itertools.cycle(asks)
        yield lambda image, prompt, limit: next(turns)(image, prompt, limit)


@contextlib.contextmanager
def asking(url: str, model: str, shape: list[int], beams: int = BEAMS, **options: int) -> Iterator[Ask]:
    """Send requests to a server's model over gRPC; its tensors have the shape [1], or [1, 1] for a batch of one.

    `options` are further INT32 inputs.
    """

    def ask(image: bytes, prompt: str, limit: int) -> Answer:
        values = {
            "IMAGE": np.array([image], np.object_),
            "TASK": np.array([prompt.encode()], np.object_),
            "MAX_NEW_TOKENS": np.array([limit], np.int32),
            "NUM_BEAMS": np.array([beams], np.int32),
            **{name: np.array([value], np.int32) for name, value in options.items()},
        }
        inputs = [
            triton.InferInput(name, shape, np_to_triton_dtype(value.dtype)).set_data_from_numpy(value.reshape(shape))
            for name, value in values.items()
        ]
        response = client.infer(model, inputs)
        assert response.as_numpy("RESULT").size == 1  # what clients want
        return Answer(response.as_numpy("GENERATED_TEXT").item().decode(), response.as_numpy("NUM_TOKENS").item())

    with contextlib.closing(triton.InferenceServerClient(url.removeprefix("grpc://"))) as client:
        yield ask
