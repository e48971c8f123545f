"""Does anything grow? Pushes many requests through worker and engine (a tiny random model), and watches.

    python -m bench.soak --requests 100000

bench.soak_live does the same to a whole server.
Most requests are ordinary; some are refused, late, cancelled, or fail in their prefill. Prints a line at every tenth of
the way and exits with 1 if memory, threads, descriptors or objects went on growing after the first three tenths.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from florence2.config import (
    GenerationDefaults,
    ImageConfig,
    ModelConfig,
    TextConfig,
    TokenConfig,
)
from florence2.engine.bart import LanguageModel
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request, Sequence
from florence2.engine.weights import create_backend
from florence2.engine.worker import Job, Worker
from florence2.errors import Florence2Error

IN_FLIGHT = 48
MEMORY_SLACK = (
    24 * 2**20
)  # allocators and oneDNN keep what they may need again; a leak of 1 kB a request would be 70 MB of 70,000 requests
OBJECT_SLACK = 5000  # it swings by 2,000 by itself; one a request would be 70,000


class Usage(NamedTuple):
    memory: int  # resident bytes
    threads: int
    descriptors: int
    objects: int  # of Python's collector; 0 for other processes


def usage_of(processes: list[int]) -> Usage:
    """The sum over processes."""
    pages = threads = descriptors = 0
    for process in processes:
        folder = Path(f"/proc/{process}")
        pages += int((folder / "statm").read_text().split()[1])
        threads += len(list((folder / "task").iterdir()))
        descriptors += len(list((folder / "fd").iterdir()))
    gc.collect()
    objects = len(gc.get_objects()) if processes == [os.getpid()] else 0
    return Usage(pages * os.sysconf("SC_PAGE_SIZE"), threads, descriptors, objects)


class Watch:
    """Takes a measurement at every tenth of the way."""

    def __init__(self, requests: int, measure: Callable[[], Usage]) -> None:
        self.requests, self.measure = requests, measure
        self.start = time.monotonic()
        self.taken: list[Usage] = []
        print(f"{'requests':>9} {'per s':>7} {'MiB':>8} {'threads':>8} {'fds':>5} {'objects':>8}")

    def at(self, done: int) -> None:
        """To be called after every request."""
        if done % (self.requests // 10) == 0:
            now = self.measure()
            rate = done / (time.monotonic() - self.start)
            row = f"{done:9d} {rate:7.0f} {now.memory / 2**20:8.1f} {now.threads:8d}"
            print(f"{row} {now.descriptors:5d} {now.objects:8d}", flush=True)
            self.taken.append(now)

    def verdict(self) -> int:
        """Exit code: what grew after the warm-up."""
        first, last = self.taken[2], self.taken[-1]
        slack = Usage(MEMORY_SLACK, 0, 0, OBJECT_SLACK)
        grown = [name for name in Usage._fields if getattr(last, name) > getattr(first, name) + getattr(slack, name)]
        print(f"grew: {', '.join(grown)}" if grown else "nothing grew")
        return 1 if grown else 0


def tiny_config() -> ModelConfig:
    return ModelConfig(
        image=ImageConfig(32, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 3, tokens=5),
        text=TextConfig(40, 16, 1, 2, 2, 4, 24, 32, max_positions=48, scale_embedding=False),
        tokens=TokenConfig(bos=0, pad=1, eos=2, decoder_start=2, first_location=20, known=37),
        generation=GenerationDefaults(forced_bos=0, forced_eos=2),
        banned_phrases=(),
        source="random weights",
    )


class EngineSoak:
    """Worker and engine in this process, with a tiny random model."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.config = config = tiny_config()
        self.chance = random.Random(0)
        self.features = np.random.default_rng(0).standard_normal((config.image.tokens, config.text.d_model), np.float32)
        self.outcomes: Counter[str] = Counter()
        self.places = threading.Semaphore(IN_FLIGHT)
        backend = create_backend(LanguageModel(config).eval().requires_grad_(False), config)
        prefill = backend.prefill
        backend.prefill = lambda x, ids, slot: prefill(x, ids, slot) if len(ids) > 3 else 1 / 0  # type: ignore
        self.engine = Engine(backend, config, max_waiting=256)
        self.worker = Worker(self.engine, max_seconds=60)

    def run(self, requests: int) -> int:
        watch = Watch(requests, lambda: usage_of([os.getpid()]))
        for done in range(1, requests + 1):
            self.places.acquire()
            try:
                self.worker.submit(self._job())
            except Florence2Error as error:
                self._answer(error)
            if done % (requests // 10) == 0:
                self._wait_for_all()
            watch.at(done)
        self.worker.stop()
        print(dict(self.outcomes), f"of {requests}")
        assert self.outcomes.total() == requests and self.engine.scheduler.idle
        assert not [kept for kept in gc.get_objects() if type(kept) in (Job, Sequence)]
        return watch.verdict()

    def _wait_for_all(self) -> None:
        for _ in range(IN_FLIGHT):
            self.places.acquire()
        self.places.release(IN_FLIGHT)

    def _answer(self, outcome: object) -> None:
        self.outcomes[type(outcome).__name__] += 1
        self.places.release()

    def _job(self) -> Job:
        """Mostly ordinary; 3 % each late and cancelled, 2 % each failing in their prefill and refused."""
        kind = self.chance.choices(("good", "late", "gone", "prefill", "refused"), (90, 3, 3, 2, 2))[0]
        prompts = {"prefill": [0, 9, 2], "refused": [0, -1, 2]}
        options = self.config.generation_options(
            num_beams=self.chance.choice((1, 1, 1, 3)),
            max_new_tokens=self.chance.randint(1, 4) if kind == "good" else 48,
        )
        return Job(
            Request(self.features.copy(), prompts.get(kind, [0, 9, 9, 9, 2]), options),
            self._answer,
            cancelled=lambda: kind == "gone",
            deadline=time.monotonic() + 0.001 if kind == "late" else float("inf"),
            next_poll=0,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args()
    logging.getLogger("florence2").setLevel(logging.CRITICAL)  # prefills fail on purpose
    return EngineSoak().run(options.requests)


if __name__ == "__main__":
    sys.exit(main())
