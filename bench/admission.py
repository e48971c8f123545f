"""Simulate the decoder with several orders of admission; docs/adr/0002 has the figures.

    python -m bench.admission

Time is that of a cost model, not of this machine: a step costs STEP + ROW * rows seconds, an admission PREFILL more.
The policies differ only in `Scheduler.admit`; the rest is the engine's own code.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import quantiles
from types import SimpleNamespace
from typing import NamedTuple

from florence2.contract import GenerationOptions
from florence2.engine.scheduler import Scheduler
from florence2.engine.sequence import Request, Sequence
from florence2.errors import Cancelled

ROWS = 24
STEP, ROW, PREFILL = 0.010, 0.00085, 0.1  # about int8 weights in base geometry (10 ms for one row, 30 for 24)
REQUESTS = 1500


class Kind(NamedTuple):
    share: float
    beams: int
    tokens: tuple[int, int]


MIXES = {
    "captions and detections, 3 beams": [Kind(0.7, 3, (10, 30)), Kind(0.3, 3, (100, 400))],
    "1 beam, every tenth 16": [Kind(0.9, 1, (10, 60)), Kind(0.1, 16, (10, 60))],
    "1, 3, 5 and 16 beams": [Kind(0.4, 1, (10, 100)), Kind(0.4, 3, (10, 100)), Kind(0.15, 5, (10, 100)),
                             Kind(0.05, 16, (10, 100))],
    "short of 1 beam, long of 5": [Kind(0.8, 1, (5, 20)), Kind(0.2, 5, (300, 1000))],
}  # fmt: skip


@dataclass
class Plan:
    arrival: float
    kind: Kind
    tokens: int
    admitted: float = 0.0


class Reserving(Scheduler):
    """The engine's policy: requests pass the head of the queue only into rows that it does not wait for."""


class FirstCome(Scheduler):
    """No request passes the head of the queue."""

    def _reserve_for(self, head: Sequence) -> range:
        return range(self.rows)


class Compacting(FirstCome):
    """First come, first served, with the live rows moved together whenever a request waits: no gaps, at no cost."""

    def admit(self) -> Sequence | None:
        start = 0
        for sequence in self.live:
            sequence.rows = range(start, start + len(sequence.rows))
            start = sequence.rows.stop
        return super().admit()


class FirstThatFits(Scheduler):
    """The first request of the queue that fits, whatever the ones before it wait for."""

    def _reserve_for(self, head: Sequence) -> range:
        return range(0)


POLICIES = (Reserving, FirstCome, Compacting, FirstThatFits)


def plans(mix: list[Kind], rate: float, seed: int) -> Iterator[Plan]:
    """Yield Poisson arrivals, the same for every policy."""
    chance, clock = random.Random(seed), 0.0
    for _ in range(REQUESTS):
        clock += chance.expovariate(rate)
        kind = chance.choices(mix, [kind.share for kind in mix])[0]
        yield Plan(clock, kind, chance.randint(*kind.tokens))


def simulate(scheduler: Scheduler, arrivals: Iterator[Plan]) -> tuple[list[Plan], float]:
    """Return all plans with their times of admission, and when the last one ended."""
    waiting, done, clock = list(arrivals)[::-1], [], 0.0
    while waiting or not scheduler.idle:
        if scheduler.idle:
            clock = max(clock, waiting[-1].arrival)
        while waiting and waiting[-1].arrival <= clock:
            scheduler.add(sequence_of(waiting.pop()))
        newcomer = scheduler.admit()
        if newcomer is not None:
            clock += PREFILL
            newcomer.request.image_features.admitted = clock - PREFILL
        clock += STEP + ROW * sum(len(sequence.rows) for sequence in scheduler.live)
        for sequence in scheduler.live:
            sequence.search.length += 1
            if sequence.search.length == sequence.request.image_features.tokens:
                sequence.finish(Cancelled("done"))
        done += [sequence.request.image_features for sequence in scheduler.retire()]
        scheduler.check()
    return done, clock


def sequence_of(plan: Plan) -> Sequence:
    options = GenerationOptions(plan.tokens, plan.kind.beams, 0, 1.0, True)
    return Sequence(Request(plan, [], options), SimpleNamespace(length=0))  # type: ignore[arg-type]


def capacity(mix: list[Kind]) -> float:
    """Return the requests per second that the engine finishes when all of them wait from the start."""
    done, end = simulate(Reserving(ROWS, REQUESTS), plans(mix, 1e9, seed=1))
    return len(done) / end


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{ROWS} rows, {REQUESTS} requests; waiting time for rows in seconds, by beams and tokens\n")
    for name, mix in MIXES.items():
        full = capacity(mix)
        print(f"{name}: {full:.2f} requests/s at most")
        for load in (0.8, 1.2):
            for policy in POLICIES:
                done, end = simulate(policy(ROWS, REQUESTS), plans(mix, load * full, seed=2))
                waits = "   ".join(_waits(kind, done) for kind in mix)
                print(f"  load {load:.1f}  {policy.__name__:12s} {len(done) / end:6.2f}/s   {waits}")
        print()


def _waits(kind: Kind, done: list[Plan]) -> str:
    waits = [plan.admitted - plan.arrival for plan in done if plan.kind is kind]
    cuts = quantiles(waits, n=100, method="inclusive")
    return f"{kind.beams}x{kind.tokens[1]}: p50 {cuts[49]:.1f} p99 {cuts[98]:.1f} max {max(waits):.1f}"


if __name__ == "__main__":
    main()
