"""The competitors that are scripts: transformers' `generate`, as it is, compiled, or on top of OpenVINO's models."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import Florence2Config, GenerationConfig

from bench.compare.loads import BEAMS, Answer, Ask
from bench.static_batch import generate
from florence2_export.checkpoint import read_checkpoint

LONGEST_CACHE = 256  # positions of the static cache


@dataclass(frozen=True)
class Plain:
    """Load transformers' model, for images of another size if one is given."""

    checkpoint: Path
    precision: str
    size: int | None = None

    def __call__(self) -> generate.Generator:
        generator = generate.Generator(self.checkpoint, getattr(torch, self.precision))
        if self.size:
            pixels = generator.processor.image_processor
            pixels.size = pixels.crop_size = {"height": self.size, "width": self.size}
            config = read_checkpoint(str(self.checkpoint), image_size=self.size).config
            generator.processor.num_image_tokens = config.image.tokens
        return generator


@dataclass(frozen=True)
class Compiled:
    """Load transformers' model with a static cache and a compiled decoder.

    `generate` itself compiles only greedy search and sampling (its `_beam_search` calls the model as it is), so the
    decoder is compiled here. The cache has one size for all lengths, since each new size compiles again for a minute.
    The vision encoder is not compiled.
    """

    checkpoint: Path
    precision: str

    def __call__(self) -> generate.Generator:
        options: dict[str, Any] = {"cache_implementation": "static", "max_cache_len": LONGEST_CACHE}
        generator = generate.Generator(self.checkpoint, getattr(torch, self.precision), **options)
        language = generator.model.model.language_model
        language.decoder = torch.compile(language.decoder)
        return generator


@dataclass(frozen=True)
class OpenVino:
    """Load the converted models of OpenVINO's notebook, in the precision that OpenVINO chooses unless one is given."""

    checkpoint: Path
    converted: Path
    precision: str = ""

    def __call__(self) -> generate.Generator:
        from bench.compare.openvino_port import OpenVinoFlorence2  # the other scripts' memory is measured without it

        settings = {"INFERENCE_PRECISION_HINT": self.precision} if self.precision else {}
        config = Florence2Config.from_pretrained(self.checkpoint)
        model = OpenVinoFlorence2(config, self.converted, **settings).eval()
        model.generation_config = GenerationConfig.from_pretrained(self.checkpoint)
        return generate.Generator(self.checkpoint, torch.float32, model)


@contextlib.contextmanager
def in_a_process(load: Callable[[], generate.Generator]) -> Iterator[Ask]:
    """Run `generate` in a separate process, so that its memory can be measured. One request at a time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, load), daemon=True)
    one_at_a_time = threading.Lock()

    def ask(image: bytes, prompt: str, limit: int) -> Answer:
        with one_at_a_time:
            ours.send((image, prompt, limit))
            return Answer(*received())

    def received() -> tuple[str, int]:
        reply = ours.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply

    process.start()
    theirs.close()
    try:
        received()
        yield ask
    finally:
        ours.close()
        process.join()


def _answer(connection: Connection, load: Callable[[], generate.Generator]) -> None:
    """Answer in the separate process until the other end is closed; an error is the last answer."""
    try:
        generator = load()
        connection.send(("ready", 0))
        while True:
            image, prompt, limit = connection.recv()
            [answer] = generator.answer([image], [prompt], [limit], BEAMS)
            connection.send((answer.text, answer.tokens))
    except EOFError:
        return
    except Exception as error:  # the other process reports it
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
