"""Many requests through a worker and an engine: does anything grow?"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
import psutil
import torch

from bench.harness import grown, usage_of
from florence2.engine.bart import LanguageModel
from florence2.engine.engine import Engine
from florence2.engine.sender import Job
from florence2.engine.sequence import Request, Sequence
from florence2.engine.weights import create_backend
from florence2.engine.worker import Worker
from florence2.errors import Florence2Error
from tests.tiny_model import tiny_config

IN_FLIGHT = 48
MEMORY_SLACK = 24.0  # MiB that allocators and oneDNN keep; a leak of 1 kB per request would be 70 MB of 70,000 requests
OBJECT_SLACK = 5000  # the count varies by 2,000; one per request would be 70,000


class Usage(NamedTuple):
    """bench.harness.Usage and the number of objects that Python's garbage collector knows."""

    memory: float
    shared: float
    threads: int
    descriptors: int
    objects: int


class EngineSoak:
    """A worker and an engine in this process, with a tiny random model.

    Most requests are ordinary; some are refused, late, cancelled, or fail in their prefill.
    """

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.config = config = tiny_config()
        self.chance = random.Random(0)
        self.features = np.random.default_rng(0).standard_normal((config.image.tokens, config.text.d_model), np.float32)
        self.outcomes: Counter[str] = Counter()
        self.slots = threading.Semaphore(IN_FLIGHT)
        backend = create_backend(LanguageModel(config).eval().requires_grad_(False), config)
        prefill = backend.prefill
        backend.prefill = lambda batch: prefill(batch) if len(batch[0].prompt_ids) > 3 else 1 / 0  # type: ignore
        self.engine = Engine(backend, config, max_waiting=256)
        self.worker = Worker(self.engine, max_seconds=60)

    def run(self, requests: int, slack: float = MEMORY_SLACK) -> list[str]:
        """Send requests and return the names of what went on growing after the first three tenths of them."""
        samples, start = list[Usage](), time.monotonic()
        for done in range(1, requests + 1):
            self.slots.acquire()
            try:
                self.worker.submit(self._job())
            except Florence2Error as error:
                self._answer(error)
            if done % (requests // 10) == 0:
                self._wait_for_all()
                samples.append(self._usage())
                print(f"{done:9d} {done / (time.monotonic() - start):7.0f}/s  {samples[-1]}", flush=True)
        self.worker.stop()
        print(dict(self.outcomes))
        assert self.outcomes.total() == requests and self.engine.scheduler.idle
        assert not [kept for kept in gc.get_objects() if type(kept) in (Job, Sequence)]
        return grown(samples[2], samples[-1], Usage(slack, 0, 0, 0, OBJECT_SLACK))

    def _usage(self) -> Usage:
        self.worker.recorder.take()  # what was counted since the last second and waits to be published
        gc.collect()
        return Usage(*usage_of([psutil.Process()]), len(gc.get_objects()))

    def _wait_for_all(self) -> None:
        for _ in range(IN_FLIGHT):
            self.slots.acquire()
        self.slots.release(IN_FLIGHT)

    def _answer(self, outcome: object) -> None:
        self.outcomes[type(outcome).__name__] += 1
        self.slots.release()

    def _job(self) -> Job:
        """Return an ordinary job in 90 % of the cases, otherwise one that ends in another way."""
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
