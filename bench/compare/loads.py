"""What the competitors are asked: callers, each of which sends its next request when it has the answer to the last."""

from __future__ import annotations

import functools
import io
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.compare.competitors import Ask
from tools.toy_model import scenes

PICTURE_SIDE = 640


class Kind(NamedTuple):
    """A task, and how many tokens its answer has: random weights do not end by themselves."""

    task: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.task} {self.tokens}"


CAPTION, DETAILED, DETECTION = Kind("<CAPTION>", 20), Kind("<DETAILED_CAPTION>", 60), Kind("<OD>", 100)


@dataclass(frozen=True)
class Load:
    """`callers`: what each of them asks, all the time. `requests`: of all together."""

    name: str
    callers: tuple[Kind, ...]
    requests: int
    one_picture: bool = False


class Measured(NamedTuple):
    seconds: float
    latencies: dict[str, list[float]]  # by kind, in seconds
    tokens: int

    @property
    def per_second(self) -> float:
        return sum(map(len, self.latencies.values())) / self.seconds


@functools.cache
def picture(seed: int) -> bytes:
    encoded = io.BytesIO()
    scenes.make_scene(seed).draw(PICTURE_SIDE).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def run(ask: Ask, load: Load, first_seed: int) -> Measured:
    """Every request has a picture of its own, from this seed on, unless the load says otherwise."""
    pictures = [picture(first_seed + (0 if load.one_picture else number)) for number in range(load.requests)]
    turns = iter(pictures)
    latencies: dict[str, list[float]] = defaultdict(list)
    lock = threading.Lock()
    total = 0

    def call(kind: Kind) -> None:
        nonlocal total
        while True:
            with lock:
                encoded = next(turns, None)
            if encoded is None:
                return
            began = time.perf_counter()
            answer = ask(encoded, kind.task, kind.tokens)
            took = time.perf_counter() - began
            with lock:
                latencies[str(kind)].append(took)
                total += answer.tokens

    began = time.perf_counter()
    with ThreadPoolExecutor(len(load.callers)) as pool:
        for done in [pool.submit(call, kind) for kind in load.callers]:
            done.result()
    return Measured(time.perf_counter() - began, dict(latencies), total)


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, share))
