"""The loads of bench.compare: which tasks how many clients request, and how a load is put on a competitor."""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bench.harness import ClosedLoop
from tools.toy_model import scenes

IMAGE_SIDE, ICON_SIDE = 640, 64
BEAMS = 3  # the published checkpoints' default
MANY = 8  # clients, where one number has to do
SWEEP = (2, 4, 16, 32, 64)  # clients, besides 1 and 8 of the main part


class Kind(NamedTuple):
    """A task and the number of tokens of its answer: with random weights answers do not end by themselves."""

    task: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.task} {self.tokens}"


CAPTION, DETECTION, OCR = Kind("<CAPTION>", 20), Kind("<OD>", 100), Kind("<OCR>", 200)
EIGHT = (CAPTION, Kind("<DETAILED_CAPTION>", 40), Kind("<MORE_DETAILED_CAPTION>", 80), Kind("<OD>", 40),
         Kind("<DENSE_REGION_CAPTION>", 60), Kind("<REGION_PROPOSAL>", 40), Kind("<OCR>", 30),
         Kind("<OCR_WITH_REGION>", 60))  # fmt: skip


@dataclass(frozen=True)
class Answer:
    text: str  # location tokens kept
    tokens: int


class Ask(Protocol):
    def __call__(self, image: bytes, prompt: str, limit: int) -> Answer:
        """Answer one request: `prompt` is the task followed by its text, if any, `limit` the most new tokens."""


@dataclass(frozen=True)
class Load:
    """Clients in a closed loop: `clients` is what each of them sends, `requests` the number of all together."""

    name: str
    clients: tuple[Kind, ...]
    requests: int
    one_image: bool = False
    side: int = IMAGE_SIDE

    @property
    def tokens(self) -> float:
        """Return the tokens of an average answer."""
        return sum(kind.tokens for kind in self.clients) / len(self.clients)


class Measured(NamedTuple):
    seconds: float
    latencies: dict[str, list[float]]  # by kind, in seconds
    tokens: int

    @property
    def per_second(self) -> float:
        return sum(map(len, self.latencies.values())) / self.seconds


def of(kind: Kind, clients: int, requests: int | None = None, name: str = "") -> Load:
    """Return the load of clients that all request the same task."""
    return Load(name or kind.task, (kind,) * clients, requests or max(clients, 2))


FIRST_TOKEN = of(Kind(CAPTION.task, 2), 1, 3, "first token")  # the very first one is always `<s>`
EIGHT_TASKS = Load("eight tasks, one image", EIGHT, len(EIGHT), one_image=True)
ICONS, ICON = (Load(name, (CAPTION,) * n, 2 * n, side=ICON_SIDE) for name, n in (("icons", MANY), ("icon", 1)))
PARTS: dict[str, tuple[Load, ...]] = {
    "main": (of(CAPTION, 1, 3), of(DETECTION, 1, 1), of(CAPTION, MANY), of(DETECTION, MANY)),
    "quality": (),
    "replicas": (of(CAPTION, MANY, 2 * MANY, "replicas"),),
    "growth": tuple(of(CAPTION, clients, name="growth") for clients in SWEEP),
    "long": (
        of(OCR, 1, 1),
        of(OCR, MANY),
        EIGHT_TASKS,
        Load("mixed", (CAPTION, DETECTION) * (MANY // 2), 2 * MANY),
    ),
    "icons": (ICONS, ICON),
    "stream": (FIRST_TOKEN,),
    "images": (of(CAPTION, MANY, 6 * MANY, "images"),),
}


@functools.cache
def image(seed: int, side: int = IMAGE_SIDE) -> bytes:
    encoded = io.BytesIO()
    scenes.make_scene(seed).draw(side).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def run(ask: Ask, load: Load, first_seed: int) -> Measured:
    """Put a load on a competitor; each request has an image of its own, from this seed on, unless the load has one."""
    seeds = itertools.repeat(first_seed) if load.one_image else itertools.count(first_seed)
    images = iter([image(seed, load.side) for seed, _ in zip(seeds, range(load.requests), strict=False)])
    latencies: dict[str, list[float]] = {str(kind): [] for kind in load.clients}

    def send(kind: Kind) -> int:
        encoded, start = next(images), time.perf_counter()
        tokens = ask(encoded, kind.task, kind.tokens).tokens
        latencies[str(kind)].append(time.perf_counter() - start)
        return tokens

    async def all_of_it() -> ClosedLoop:
        event_loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(len(load.clients)) as pool:
            calls = [functools.partial(event_loop.run_in_executor, pool, send, kind) for kind in load.clients]
            loop = ClosedLoop(calls, load.requests)
            await loop.run()
        return loop

    start = time.perf_counter()
    loop = asyncio.run(all_of_it())
    return Measured(time.perf_counter() - start, latencies, sum(reply.outcome for reply in loop.replies))


def tiny(load: Load) -> Load:
    """Return a load of the same form that takes seconds with the bundled checkpoint."""
    clients = load.clients if len(set(load.clients)) > 1 else load.clients[:4]
    return Load(load.name, tuple(Kind(kind.task, 4) for kind in clients), len(clients), load.one_image, load.side)
