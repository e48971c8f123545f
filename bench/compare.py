"""Compare this server with transformers' `generate`, called directly and behind Triton's own batcher, on this machine.

    python -m bench.compare             base geometry, random weights; writes README's and docs/benchmarks.md's tables
    python -m bench.compare --quick     the bundled checkpoint, few requests, only printed

Competitors run one after the other, each with the machine to itself, on the same images, tasks, numbers of beams and of
tokens. Quality is measured on the bundled checkpoint, since random weights have none.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import io
import os
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench import report
from bench.competitors import BUNDLED, Ask, Competitor, base_checkpoint, line_up
from bench.harness import ClosedLoop, Peak, descendants, proportional_memory
from bench.report import CAPTION, DETAILED, DETECTION, MANY, Kind
from tools.toy_model import scenes
from tools.toy_model.evaluate import DRAWN_SIZE, MEASURES, Scores

FOLDER = Path("build/bench")
SWEEP = (1, 2, 4, MANY, 16)
IMAGE_SIDE = 640
LONGEST = 150  # tokens of an answer whose quality is measured, as in the evaluation


# ---- speed


@dataclass(frozen=True)
class Load:
    """Clients in a closed loop: `clients` is what each of them sends, `requests` the number of all together."""

    name: str
    clients: tuple[Kind, ...]
    requests: int
    one_image: bool = False


class Measured(NamedTuple):
    seconds: float
    latencies: dict[str, list[float]]  # by kind, in seconds
    tokens: int

    @property
    def per_second(self) -> float:
        return sum(map(len, self.latencies.values())) / self.seconds


def plan() -> list[Load]:
    """Return the loads. A client sends one request, or two if mixed, and a load has at least three."""
    found = [
        Load(kind.task, (kind,) * clients, max(3, clients))
        for kind in (CAPTION, DETAILED, DETECTION)
        for clients in (SWEEP if kind is CAPTION else (1, MANY))
    ]
    half = MANY // 2
    found.append(Load("mixed", (CAPTION, DETECTION) * half, 2 * MANY))
    found.append(Load("one image", (CAPTION,) * MANY, 2 * MANY, one_image=True))
    return found


@functools.cache
def image(seed: int) -> bytes:
    encoded = io.BytesIO()
    scenes.make_scene(seed).draw(IMAGE_SIDE).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def run(ask: Ask, load: Load, first_seed: int) -> Measured:
    """Put a load on a competitor; each request has an image of its own, from this seed on, unless the load has one."""
    images = [image(first_seed + (0 if load.one_image else number)) for number in range(load.requests)]
    waiting = iter(images)
    latencies: dict[str, list[float]] = {str(kind): [] for kind in load.clients}

    def send(kind: Kind) -> int:
        encoded, start = next(waiting), time.perf_counter()
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


def fits(load: Load, competitor: Competitor) -> bool:
    clients = len(load.clients)
    if (load.one_image and not competitor.remembers) or clients > competitor.most_clients:
        return False
    return competitor.every_number_of_clients or clients in (1, MANY)


def measure_speed(competitor: Competitor, planned: list[Load]) -> dict[str, Any]:
    """Return the latencies of all loads that suit a competitor, and the memory of its processes, shared pages once."""
    measured = []
    with (
        Peak(lambda: [sum(map(proportional_memory, descendants()))]) as memory,
        competitor.start() as ask,
    ):
        ask(image(0), CAPTION.task, 2)  # the first request is slower
        seed = 1
        for load in planned:
            if fits(load, competitor):
                result = run(ask, load, first_seed=seed)
                say(f"  {load.name} x {len(load.clients)}: {result.per_second:.2f} answers/s, {result.seconds:.0f} s")
                measured.append({"load": load.name, "clients": len(load.clients), **result._asdict()})
            seed += load.requests  # so that a competitor that skips a load gets the same images in the others
    return {"loads": measured, "memory_mib": memory.values[0]}


# ---- quality


class Example(NamedTuple):
    task: str
    image: bytes
    prompt: str
    target: str


class Quality(NamedTuple):
    """`score` is the mean over the tasks of the first metric that the evaluation uses: exact answers, F1 or overlap."""

    answers: list[str]
    score: float

    def equal(self, reference: Quality) -> float:
        """Return the share of answers that are identical to the reference's."""
        return statistics.mean(a == b for a, b in zip(self.answers, reference.answers, strict=True))


@functools.cache
def examples(scene_count: int) -> list[Example]:
    """Return all tasks about scenes that the bundled checkpoint was not trained on."""
    found = []
    for seed in range(scene_count):
        scene = scenes.make_scene(seed)
        encoded = io.BytesIO()
        scene.draw(DRAWN_SIZE).save(encoded, "PNG")
        for task, example in scenes.make_examples(scene, seed).items():
            found.append(Example(task, encoded.getvalue(), example.processor_text, example.target))
    return found


def measure_quality(ask: Ask, scene_count: int, clients: int) -> Quality:
    cases = examples(scene_count)
    with ThreadPoolExecutor(clients) as pool:
        answers = [answer.text for answer in pool.map(lambda case: ask(case.image, case.prompt, LONGEST), cases)]
    scores: dict[str, Scores] = defaultdict(Scores)
    for case, answer in zip(cases, answers, strict=True):
        scores[case.task].answers += 1
        MEASURES[case.task][0](scores[case.task], answer, case.target)
    return Quality(answers, statistics.mean(MEASURES[task][1][0][1](score) for task, score in scores.items()))


# ---- all of it


def compare(fast: list[Competitor], good: list[Competitor], planned: list[Load], scene_count: int) -> dict[str, Any]:
    """Return all figures. `fast` and `good` are the same competitors with the checkpoints for speed and for quality."""
    began, machines, found = time.monotonic(), [], {}
    for competitor in fast:
        say(f"[{time.monotonic() - began:5.0f} s] {competitor.name}")
        machines.append(report.Machine.measure())
        found[competitor.name] = measure_speed(competitor, planned)
    reference = None
    for competitor in good:
        say(f"[{time.monotonic() - began:5.0f} s] {competitor.name}: quality")
        with competitor.start() as ask:
            measured = measure_quality(ask, scene_count, min(MANY, competitor.most_clients))
        reference = reference or measured
        found[competitor.name] |= {"equal": measured.equal(reference), "score": measured.score}
    return {
        "conditions": report.conditions(),
        "machine": [dataclasses.asdict(machine) for machine in machines],
        "minutes": (time.monotonic() - began) / 60,
        "quality_answers": len(examples(scene_count)),
        "competitors": found,
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a check of some minutes; the figures say little")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    checkpoint = BUNDLED if options.quick else base_checkpoint(FOLDER / "base")
    bundled = line_up(BUNDLED, FOLDER)
    fast = bundled if options.quick else line_up(checkpoint, FOLDER)
    figures = compare(fast, bundled, plan(), scene_count=2 if options.quick else 10)
    if options.quick:
        print(report.tables(figures))
    else:
        report.write(figures | {"work": dataclasses.asdict(report.Work.of_base())})


if __name__ == "__main__":
    main()
