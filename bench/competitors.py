"""The competitors of bench.compare, and the checkpoints that they serve.

Each competitor starts in a `with` block, with the machine to itself, and answers from many threads.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import tritonclient.grpc as triton
from tokenizers import Tokenizer
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
from tritonclient.utils import np_to_triton_dtype

from bench.decode import BASE, bart_config
from bench.harness import embedded_server
from bench.static_batch import generate
from tools.toy_model import architecture

BEAMS = 3  # the published checkpoints' default
STATIC_BATCH = Path(__file__).parent / "static_batch"


BUNDLED = architecture.BUNDLED
IMAGE_TOKEN = BASE.tokens.known  # the ids below it are text and locations


@dataclass(frozen=True)
class Answer:
    text: str  # location tokens kept
    tokens: int


class Ask(Protocol):
    def __call__(self, image: bytes, prompt: str, limit: int) -> Answer:
        """Answer one request: `prompt` is the task followed by its text, if any, `limit` the most new tokens."""


@dataclass(frozen=True)
class Competitor:
    name: str
    start: Callable[[], contextlib.AbstractContextManager[Ask]]
    most_clients: int = 1000  # a script has one
    every_number_of_clients: bool = False  # not only 1 and 8
    remembers: bool = False  # images that it has encoded before


def line_up(checkpoint: Path, exports: Path) -> list[Competitor]:
    """Return the competitors in the tables' order; this server is exported to `exports`, which takes a minute or two.

    By default this server's language model has int8 weights and its encoder computes in bfloat16. The static batch uses
    bfloat16, its fastest precision, so that precision is not our advantage.
    """
    return [
        direct(checkpoint, "float32"),
        direct(checkpoint, "bfloat16"),
        static_batch(checkpoint, "bfloat16", every_number_of_clients=True),
        this_server(export(checkpoint, exports, "auto"), "default", every_number_of_clients=True),
    ]


# --- generate, called directly ----------------------------------------------------------------------------------------


def direct(checkpoint: Path, precision: str) -> Competitor:
    return Competitor(f"transformers {precision}", lambda: _direct(checkpoint, precision), most_clients=1)


@contextlib.contextmanager
def _direct(checkpoint: Path, precision: str) -> Iterator[Ask]:
    """Run `generate` in a separate process, so that its memory can be measured. One request at a time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, checkpoint, precision), daemon=True)
    one_at_a_time = threading.Lock()

    def ask(image: bytes, prompt: str, limit: int) -> Answer:
        with one_at_a_time:
            ours.send((image, prompt, limit))
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
    """Answer in the separate process until the other end is closed."""
    generator = generate.Generator(checkpoint, getattr(torch, precision))
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            image, prompt, limit = connection.recv()
            [answer] = generator.answer([image], [prompt], [limit], BEAMS)
            connection.send((answer.text, answer.tokens))


# --- on Triton --------------------------------------------------------------------------------------------------------


def static_batch(checkpoint: Path, precision: str, every_number_of_clients: bool = False) -> Competitor:
    return Competitor(
        f"static batch, {precision}",
        lambda: _static_batch(checkpoint, precision),
        every_number_of_clients=every_number_of_clients,
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


def this_server(repository: Path, precision: str, every_number_of_clients: bool = False) -> Competitor:
    return Competitor(
        f"this server, {precision}",
        lambda: _served(repository, "florence2_ensemble", shape=[1]),
        every_number_of_clients=every_number_of_clients,
        remembers=True,
    )


@contextlib.contextmanager
def _served(repository: Path, model: str, shape: list[int]) -> Iterator[Ask]:
    with (
        embedded_server(repository) as server,
        asking(server.grpc_url, model, shape) as ask,
    ):
        yield ask


@contextlib.contextmanager
def asking(url: str, model: str, shape: list[int], beams: int = BEAMS, **options: int) -> Iterator[Ask]:
    """Ask a model of a running server over gRPC; its tensors have the shape [1], or [1, 1] for a batch of one.

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


# --- checkpoints and exports ------------------------------------------------------------------------------------------


def base_checkpoint(folder: Path) -> Path:
    """Make a checkpoint of base geometry with random weights, always the same, unless it exists.

    Speed depends on sizes, not on what was learned. The tokenizer is the bundled one with unused words inserted, so
    that the ids, and the rows of the output head, are those of the published model.
    """
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = Florence2ForConditionalGeneration(base_config())
        with torch.no_grad():  # rows without a token must not win, and transformers does not forbid them
            model.get_input_embeddings().weight[IMAGE_TOKEN + 1 :] = 0
        architecture.save(model, base_processor(), folder)
    return folder


def base_config() -> Florence2Config:
    text = BASE.text
    return Florence2Config(
        text_config=bart_config(text)
        | {"decoder_start_token_id": BASE.tokens.decoder_start, "forced_eos_token_id": BASE.tokens.eos},
        vision_config=dict(projection_dim=text.d_model),  # base is the default for the rest
        image_token_id=IMAGE_TOKEN,
    )


def base_processor() -> Florence2Processor:
    bundled = Florence2Processor.from_pretrained(BUNDLED)
    tokenizer, pixels = bundled.tokenizer, bundled.image_processor
    tokenizer._tokenizer = stretched_tokenizer()
    tokenizer.model_max_length = BASE.text.max_positions
    pixels.size = pixels.crop_size = {"height": BASE.image.height, "width": BASE.image.width}
    pixels.image_seq_length = BASE.image.tokens
    grammar = bundled.post_processor_config
    return Florence2Processor(pixels, tokenizer, num_additional_image_tokens=0, post_processor_config=grammar)


def stretched_tokenizer() -> Tokenizer:
    """Return the bundled tokenizer with its task and location tokens moved up to the published ids."""
    tokenizer = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    moved = [token for token in tokenizer["added_tokens"] if token["id"] >= len(words)]
    shift = IMAGE_TOKEN - moved[-1]["id"]
    for number in range(shift):
        words[f"unused{number}"] = len(words)
    for token in moved:
        token["id"] += shift
    return Tokenizer.from_str(json.dumps(tokenizer))


def export(checkpoint: Path, exports: Path, precision: str, target: str = "cpu") -> Path:
    """Export a checkpoint, unless that was done before, and return the repository."""
    repository = exports / f"{checkpoint.name}-{precision}-{target}"
    if not repository.exists():
        options = ["--repository", repository, "--precision", precision, "--target", target]
        subprocess.run([sys.executable, "-m", "export", checkpoint, *options], check=True, stdout=sys.stderr)
    return repository
