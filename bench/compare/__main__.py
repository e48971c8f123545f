"""This server beside transformers' `generate`, called directly and behind Triton's own batcher, on this machine.

    python -m bench.compare             base geometry, random weights; writes README's and docs/benchmarks.md's tables
    python -m bench.compare --quick     the bundled checkpoint, few requests, only printed

Competitors run one after the other, each alone, on the same pictures, tasks, numbers of beams and of tokens. Quality is
the bundled checkpoint's: random weights have none.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.compare import limit, loads, quality, report
from bench.compare.checkpoint import base_checkpoint
from bench.compare.competitors import Competitor, line_up
from bench.compare.loads import CAPTION, DETAILED, DETECTION, Load
from bench.compare.memory import PeakMemory
from tools.toy_model.evaluate import CHECKPOINT as BUNDLED

FOLDER = Path("build/bench")
MANY = 8  # callers, where one number has to do
SWEEP = (1, 2, 4, MANY, 16)


def plan() -> list[Load]:
    """One caller asks three times, two and four at least that often in all, many once, and twice in the mixed load."""
    found = [
        Load(kind.task, (kind,) * callers, max(3, callers))
        for kind in (CAPTION, DETAILED, DETECTION)
        for callers in (SWEEP if kind is CAPTION else (1, MANY))
    ]
    half = MANY // 2
    found.append(Load("mixed", (CAPTION, DETECTION) * half, 2 * MANY))
    found.append(Load("one picture", (CAPTION,) * MANY, 2 * MANY, one_picture=True))
    return found


def fits(load: Load, competitor: Competitor) -> bool:
    callers = len(load.callers)
    if (load.one_picture and not competitor.remembers) or callers > competitor.most_callers:
        return False
    return competitor.every_number_of_callers or callers in (1, MANY)


def measure_speed(competitor: Competitor, planned: list[Load]) -> dict[str, Any]:
    measured = []
    with PeakMemory() as memory, competitor.start() as ask:
        ask(loads.picture(0), CAPTION.task, 2)  # the first answer is slower
        seed = 1
        for load in planned:
            if fits(load, competitor):
                result = loads.run(ask, load, first_seed=seed)
                say(f"  {load.name} x {len(load.callers)}: {result.per_second:.2f} answers/s, {result.seconds:.0f} s")
                measured.append({"load": load.name, "callers": len(load.callers), **result._asdict()})
            seed += load.requests  # whoever leaves a load out sees the same pictures in the others
    return {"loads": measured, "memory_mib": memory.mib}


def compare(speed: list[Competitor], good: list[Competitor], planned: list[Load], scenes: int) -> dict[str, Any]:
    """All figures. `speed` and `good`: the same competitors with the checkpoint to be fast and the one to be right."""
    began, machines, found = time.monotonic(), [], {}
    for competitor in speed:
        say(f"[{time.monotonic() - began:5.0f} s] {competitor.name}")
        machines.append(limit.Machine.measure())
        found[competitor.name] = measure_speed(competitor, planned)
    reference = None
    for competitor in good:
        say(f"[{time.monotonic() - began:5.0f} s] {competitor.name}: quality")
        with competitor.start() as ask:
            answered = quality.measure(ask, scenes, min(MANY, competitor.most_callers))
        reference = reference or answered
        found[competitor.name] |= {"equal": answered.equal(reference), "score": answered.score}
    return {
        "conditions": report.conditions(),
        "machine": [dataclasses.asdict(machine) for machine in machines],
        "minutes": (time.monotonic() - began) / 60,
        "quality_answers": len(quality.questions(scenes)),
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
    speed = bundled if options.quick else line_up(checkpoint, FOLDER)
    figures = compare(speed, bundled, plan(), scenes=2 if options.quick else 10)
    if options.quick:
        print(report.tables(figures))
    else:
        report.write(figures | {"work": dataclasses.asdict(limit.Work.of_base())})


if __name__ == "__main__":
    main()
