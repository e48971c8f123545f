"""Measure what a step takes on the host next to the computation: the searches, and the inputs and outputs of a step.

    python -m bench.bookkeeping

The backend computes nothing and returns candidates that were drawn before, so that a step of the engine is the
searches' share. What the backends do in Python, filling in a step's inputs and reading its outputs, is measured on the
same searches. The table has microseconds per step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bench.decode import BASE, request
from florence2.engine.backend import Backend, CacheBytes, Candidates, StepInput
from florence2.engine.bart import Prefill
from florence2.engine.cpu.backend import batch_of
from florence2.engine.cuda.step import PaddedStep, Shape
from florence2.engine.engine import Engine

LOADS = ((1, 1), (1, 3), (8, 3), (32, 3))  # requests in flight and beams
LENGTHS = (20, 200)  # tokens that are decoded when the measurement begins
STEPS = 25
DRAWN = 512  # candidates of one request
CACHE: Any = SimpleNamespace(device=torch.device("cpu"))  # that no step attends to


class NoBackend(Backend):
    """Return random candidates, none of which ends a hypothesis."""

    def __init__(self, rows: int, requests: int, beams: int) -> None:
        self.rows, self.prefill_batch, self.cache_bytes = rows, rows, CacheBytes(1, 1)
        random, size = np.random.default_rng(0), (DRAWN // requests, requests, 2 * beams if beams > 1 else 1)
        scores = -np.sort(random.random(size, np.float32))
        drawn = scores, random.integers(beams, size=size), random.integers(4, 50_000, size), scores, scores
        self._found = [[Candidates(*parts)] for parts in zip(*drawn, strict=True)]
        self.live: StepInput

    @classmethod
    def cache_dtype(cls, model: object) -> torch.dtype:
        return torch.float16

    def prefill(self, requests: Sequence[Prefill]) -> Generator[None, None, list[bool]]:
        yield
        return [True] * len(requests)

    def step(self, step: StepInput) -> list[Candidates]:
        self.live = step
        return self._found[step.positions[0] % len(self._found)]

    def clear(self, rows: range) -> None:
        raise AssertionError("no candidate is NaN")


def microseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(STEPS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


def measure(requests: int, beams: int, length: int) -> list[float]:
    """Return the time of the searches, and of inputs and outputs on a CPU and on a GPU."""
    backend = NoBackend(96, requests, beams)
    engine = Engine(backend, BASE, prefill_seconds=60)
    for seed in range(requests):
        engine.add(request(BASE, seed, num_beams=beams, max_new_tokens=length + 2 * STEPS))
    for _ in range(length):
        engine.step()
    search = microseconds(engine.step)
    live = backend.live
    width = 1 if beams == 1 else 4
    step = PaddedStep(CACHE, BASE.text.vocab_size, BASE.tokens, Shape(96, 96, width, 256, 640, 16))
    filled = microseconds(lambda: step.fill(live))
    read = microseconds(lambda: step.candidates(live.layout.groups))
    return [search, microseconds(lambda: batch_of(live)), filled, read]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| requests x beams | tokens | searches | inputs, CPU | inputs, GPU | outputs, GPU |")
    print("|---|---|---|---|---|---|")
    for requests, beams in LOADS:
        for length in LENGTHS:
            cells = measure(requests, beams, length)
            print(f"| {requests} x {beams} | {length} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
