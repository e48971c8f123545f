"""The steps of bench.compare: a part of its loads, put on one competitor in one round, and recorded."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from bench.compare import machine
from bench.compare.competitors import Competitor
from bench.compare.loads import MANY, PARTS, Load, image, run
from bench.compare.quality import measure_quality
from bench.compare.record import Figures, Key, Record, stamp
from bench.harness import Peak, descendants, proportional_memory

QUALITY_SECONDS = 25  # with the start


@dataclass(frozen=True)
class Step:
    """One part of one competitor in one round: what is measured with one start."""

    part: str
    competitor: Competitor
    round: int
    loads: list[Load]
    scenes: int = 0  # of a part that measures quality

    @property
    def key(self) -> Key:
        return self.part, self.competitor.name, self.round

    @property
    def seconds(self) -> float:
        return QUALITY_SECONDS if self.scenes else self.competitor.seconds(self.loads)


def plan(fast: list[Competitor], good: list[Competitor], parts: Iterable[str], rounds: int, scenes: int) -> list[Step]:
    """Return all steps. `fast` and `good` are the same competitors with the checkpoints for speed and for quality."""
    return [
        Step(part, competitor, turn, [*filter(competitor.takes, PARTS[part])], 0 if PARTS[part] else scenes)
        for turn in range(1, rounds + 1)
        for part in parts
        if turn == 1 or PARTS[part]  # quality is the same in every round
        for competitor in (fast if PARTS[part] else good)
        if part in competitor.parts
    ]


def measure(step: Step, figures: Figures) -> Figures:
    """Return what a step showed; an error ends only its step."""
    found = {"part": step.part, "competitor": step.competitor.name, "round": step.round, **stamp()}
    found["machine"] = machine.rates()
    try:
        with (
            Peak(lambda: [sum(map(proportional_memory, descendants()))]) as memory,
            step.competitor.start() as ask,
        ):
            if step.scenes:
                quality = measure_quality(ask, step.scenes, 1 if step.competitor.one_client else MANY)
                known = [one["answers"] for one in figures["runs"] if len(one.get("answers", ())) == len(quality[0])]
                found |= {"score": quality.score, "equal": quality.equal(known[0] if known else quality.answers)}
                return found | ({} if known else {"answers": quality.answers})
            for task in dict.fromkeys(load.clients[0].task for load in step.loads):
                ask(image(0), task, 4)  # the first request is slower, and a compiled model's first of each length
            seed, found["loads"] = 1000 * step.round, []
            for load in step.loads:
                result = run(ask, load, first_seed=seed)
                say(f"  {load.name} x {len(load.clients)}: {result.per_second:.2f} answers/s, {result.seconds:.0f} s")
                found["loads"].append({"load": load.name, "clients": len(load.clients), **result._asdict()})
                seed += load.requests
    except Exception as error:
        say(f"  {type(error).__name__}: {error}")
        return found | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return found | {"memory_mib": memory.values[0]}


def compare(steps: list[Step], record: Record, minutes: float = float("inf")) -> None:
    """Measure the steps that the record does not hold yet, if they can be expected to end in so many minutes."""
    began = time.monotonic()
    for step in steps:
        passed = time.monotonic() - began
        if record.has(step.key):
            say(f"[{passed:5.0f} s] {', '.join(map(str, step.key))}: measured before")
        elif passed + step.seconds > 60 * minutes:
            say(f"[{passed:5.0f} s] {', '.join(map(str, step.key))}: does not fit, needs {step.seconds:.0f} s")
        else:
            say(f"[{passed:5.0f} s] {', '.join(map(str, step.key))}: about {step.seconds:.0f} s")
            record.add(measure(step, record.figures))


def listing(steps: list[Step], record: Record) -> str:
    """Return a line per part with its competitors, and how long it takes."""
    lines = []
    for part in PARTS:
        mine = [step for step in steps if step.part == part]
        names = dict.fromkeys(step.competitor.name for step in mine)
        left = sum(step.seconds for step in mine if not record.has(step.key))
        minutes = sum(step.seconds for step in mine) / 60
        lines.append(f"{part:12} {minutes:5.1f} min, {left / 60:5.1f} not measured yet: {', '.join(names)}")
    left = sum(step.seconds for step in steps if not record.has(step.key))
    return "\n".join([*lines, f"{'in all':12} {sum(step.seconds for step in steps) / 60:5.1f} min, {left / 60:5.1f}"])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
