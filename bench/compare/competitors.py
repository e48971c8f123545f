"""Who is compared: each starts in a `with` block, alone on the machine, and answers from many threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from bench.compare import generate
from bench.compare.checkpoint import export
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions

BEAMS = 3  # the published checkpoints' default
STATIC_BATCH = Path(__file__).parents[1] / "static_batch"


@dataclass(frozen=True)
class Answer:
    text: str  # location tokens kept
    tokens: int


class Ask(Protocol):
    def __call__(self, picture: bytes, prompt: str, limit: int) -> Answer:
        """`prompt`: the task, followed by its text if it takes one. `limit`: the most new tokens."""


@dataclass(frozen=True)
class Competitor:
    name: str
    start: Callable[[], contextlib.AbstractContextManager[Ask]]
    most_callers: int = 1000  # a script is called by one
    every_number_of_callers: bool = False  # and not only 1 and 8
    remembers: bool = False  # pictures that it was asked about before


def line_up(checkpoint: Path, exports: Path) -> list[Competitor]:
    """In the order of the tables. `exports` gets this server's repositories, which takes a minute or two each.

    By default the language model's weights are int8 and the encoder computes in bfloat16. The static batch is in
    bfloat16 too, which is its fastest, so that precision is not our advantage.
    """
    return [
        direct(checkpoint, "float32"),
        direct(checkpoint, "bfloat16"),
        static_batch(checkpoint, "bfloat16", every_number_of_callers=True),
        this_server(export(checkpoint, exports, "auto"), "default", every_number_of_callers=True),
    ]


# --- generate, called directly ----------------------------------------------------------------------------------------


def direct(checkpoint: Path, precision: str) -> Competitor:
    return Competitor(f"transformers {precision}", lambda: _direct(checkpoint, precision), most_callers=1)


@contextlib.contextmanager
def _direct(checkpoint: Path, precision: str) -> Iterator[Ask]:
    """In a process of its own, so that its memory can be told from ours. One request at a time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, checkpoint, precision), daemon=True)
    one_at_a_time = threading.Lock()

    def ask(picture: bytes, prompt: str, limit: int) -> Answer:
        with one_at_a_time:
            ours.send((picture, prompt, limit))
            return Answer(*ours.recv())

    process.start()
    theirs.close()
    try:
        ours.recv()
        yield ask
    finally:
        ours.close()
        process.join()


def _answer(connection: Connection, checkpoint: Path, precision: str) -> None:
    """The process: answers until the other end is closed."""
    import torch

    generator = generate.Generator(checkpoint, getattr(torch, precision))
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            picture, prompt, limit = connection.recv()
            [answer] = generator.answer([picture], [prompt], [limit], BEAMS)
            connection.send((answer.text, answer.tokens))


# --- on Triton --------------------------------------------------------------------------------------------------------


def static_batch(checkpoint: Path, precision: str, every_number_of_callers: bool = False) -> Competitor:
    return Competitor(
        f"static batch, {precision}",
        lambda: _static_batch(checkpoint, precision),
        every_number_of_callers=every_number_of_callers,
    )


@contextlib.contextmanager
def _static_batch(checkpoint: Path, precision: str) -> Iterator[Ask]:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        shutil.copytree(STATIC_BATCH, repository, ignore=shutil.ignore_patterns("__pycache__"))
        config = repository / "florence2_static" / "config.pbtxt"
        config.write_text(config.read_text().replace('"float32"', f'"{precision}"'))
        version = config.parent / "1"
        shutil.copy(generate.__file__, version)
        (version / "checkpoint").symlink_to(checkpoint.resolve(), target_is_directory=True)
        with _served(repository, "florence2_static", shape=[1, 1]) as ask:
            yield ask


def this_server(repository: Path, precision: str, every_number_of_callers: bool = False) -> Competitor:
    return Competitor(
        f"this server, {precision}",
        lambda: _served(repository, "florence2_ensemble", shape=[1]),
        every_number_of_callers=every_number_of_callers,
        remembers=True,
    )


@contextlib.contextmanager
def _served(repository: Path, model: str, shape: list[int]) -> Iterator[Ask]:
    with (
        EmbeddedServer(ServingOptions.on_free_ports(repository), report=lambda _line: None) as server,
        asking(server.grpc_url, model, shape) as ask,
    ):
        yield ask


@contextlib.contextmanager
def asking(url: str, model: str, shape: list[int]) -> Iterator[Ask]:
    """A model of a running server, by gRPC. `shape`: of its tensors, [1] or a batch of one, [1, 1]."""

    def ask(picture: bytes, prompt: str, limit: int) -> Answer:
        values = {
            "IMAGE": np.array([picture], np.object_),
            "TASK": np.array([prompt.encode()], np.object_),
            "MAX_NEW_TOKENS": np.array([limit], np.int32),
            "NUM_BEAMS": np.array([BEAMS], np.int32),
        }
        inputs = [
            triton.InferInput(name, shape, np_to_triton_dtype(value.dtype)).set_data_from_numpy(value.reshape(shape))
            for name, value in values.items()
        ]
        answer = client.infer(model, inputs)
        assert answer.as_numpy("RESULT").size == 1  # what callers are after
        return Answer(answer.as_numpy("GENERATED_TEXT").item().decode(), answer.as_numpy("NUM_TOKENS").item())

    with contextlib.closing(triton.InferenceServerClient(url.removeprefix("grpc://"))) as client:
        yield ask
