"""Encoder and decoder on one GPU: the time of a step and images per second, each by itself and both together.

As two processes, which is how they are served, and as two threads of one. Run it again with NVIDIA's MPS (docs/gpu.md)
to see what that changes. Base geometry, random weights, 8 requests of 3 beams, batches of 8 images.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.decode import random_weights
from bench.gpu.encoder import captured, model_and_checkpoint
from bench.gpu.harness import Report, arguments, engine_of, geometry, random_request
from florence2.engine.engine import Engine
from florence2_export.vision import VisionEncoder

REQUESTS, BEAMS = 8, 3
IMAGES = 8  # of a batch


@dataclass(frozen=True)
class Encoding:
    """An encoder in another process or thread: it is ready, runs while it may, and counts images."""

    ready: Any
    may_run: Any
    stop: Any
    images: Any  # with a `value`

    def per_second(self, seconds: float, meanwhile: Callable[[float], None]) -> float:
        """Return the images per second of its next `seconds`, in which `meanwhile` runs."""
        self.may_run.set()
        time.sleep(seconds / 4)  # it may be in the middle of a pause
        before, started = self.images.value, time.perf_counter()
        meanwhile(seconds)
        rate = (self.images.value - before) / (time.perf_counter() - started)
        self.may_run.clear()
        return float(rate)


@torch.inference_mode()
def encode(options: argparse.Namespace, encoding: Encoding) -> None:
    """Encode batches while `may_run` is set, until `stop`."""
    cuda = options.device == "cuda"
    _, checkpoint = model_and_checkpoint(options)
    encoder = VisionEncoder(checkpoint, torch.float16 if cuda else torch.float32).to(options.device).eval()
    image, count = checkpoint.config.image, 1 if options.small else IMAGES
    pixels = torch.zeros(count, image.height, image.width, 3, dtype=torch.uint8, device=options.device)
    stream = torch.cuda.Stream() if cuda else None
    with torch.cuda.stream(stream):  # None changes nothing
        run = captured(lambda: encoder(pixels)) if cuda else lambda: encoder(pixels)
        encoding.ready.set()
        while not encoding.stop.is_set():
            if encoding.may_run.wait(0.1):
                run()
                if stream is not None:
                    stream.synchronize()
                encoding.images.value += count


@contextlib.contextmanager
def process(options: argparse.Namespace) -> Iterator[Encoding]:
    spawn = multiprocessing.get_context("spawn")
    encoding = Encoding(spawn.Event(), spawn.Event(), spawn.Event(), spawn.Value(ctypes.c_int64, 0, lock=False))
    worker = spawn.Process(target=encode, args=(options, encoding), daemon=True)
    worker.start()
    try:
        while not encoding.ready.wait(1):
            if worker.exitcode is not None:
                raise RuntimeError(f"the encoder's process ended with {worker.exitcode}")
        yield encoding
    finally:
        encoding.stop.set()
        worker.join()


@contextlib.contextmanager
def thread(options: argparse.Namespace) -> Iterator[Encoding]:
    encoding = Encoding(threading.Event(), threading.Event(), threading.Event(), ctypes.c_int64(0))
    worker = threading.Thread(target=encode, args=(options, encoding), daemon=True)
    worker.start()
    try:
        while not encoding.ready.wait(1):
            if not worker.is_alive():
                raise RuntimeError("the encoder's thread ended")
        yield encoding
    finally:
        encoding.stop.set()
        worker.join()


class Decoding:
    """An engine that always has requests in flight."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self.engine, self.tokens, self.step_ms = engine, tokens, 0.0

    def run(self, seconds: float) -> None:
        """Decode for so long, and note the mean time of a step in `step_ms`, prefill left out."""
        spent, steps, end = 0.0, 0, time.perf_counter() + seconds
        while time.perf_counter() < end or not steps:
            if self.engine.scheduler.idle:
                for seed in range(REQUESTS):
                    self.engine.add(
                        random_request(self.engine.config, seed, num_beams=BEAMS, max_new_tokens=self.tokens)
                    )
                self.engine.step()  # prefill and the first token
                continue
            started = time.perf_counter()
            self.engine.step()
            spent, steps = spent + time.perf_counter() - started, steps + 1
        self.step_ms = round(spent / steps * 1e3, 3)


def main() -> None:
    options = arguments(__doc__)
    report, seconds = Report(options, "together"), 1.0 if options.small else 5.0
    config = geometry(options)
    decoding = Decoding(engine_of(random_weights(config), config, options), 12 if options.small else 60)
    decoding.run(seconds / 4)  # captures
    decoding.run(seconds)
    report("step_ms_by_itself", decoding.step_ms)
    report("mps", "CUDA_MPS_PIPE_DIRECTORY" in os.environ)
    for place in (process, thread):
        with report.part(place.__name__), place(options) as encoding:
            only = encoding.per_second(seconds, time.sleep)
            both = encoding.per_second(seconds, decoding.run)
            report(f"as_{place.__name__}", {
                "images_per_second_by_itself": round(only, 2), "images_per_second_together": round(both, 2),
                "step_ms_together": decoding.step_ms,
            })  # fmt: skip


if __name__ == "__main__":
    main()
