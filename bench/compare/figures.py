"""Read the figures of bench.compare: medians and ranges of repeated runs, the machine's limit, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench.compare.record import Figures

DOLLARS_AN_HOUR = 0.10


class Spread(NamedTuple):
    """The median of repeated measurements, and their range."""

    median: float
    low: float
    high: float
    times: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1], len(found))

    def show(self, digits: int = 2, unit: str = "") -> str:
        """Return the median, and the range if it was measured more than once."""
        spread = f" ({self.low:.{digits}f} to {self.high:.{digits}f})" if self.times > 1 else ""
        return f"{self.median:.{digits}f}{unit}{spread}"


def competitors(figures: Figures) -> list[str]:
    """Return the names of those that were measured, in the order of the first round."""
    return list(dict.fromkeys(run["competitor"] for run in figures["runs"]))


def measured(figures: Figures, competitor: str, load: str, clients: int) -> list[Figures]:
    """Return what one competitor showed under one load, for each time it was measured."""
    return [
        one
        for run in figures["runs"]
        if run["competitor"] == competitor
        for one in run.get("loads", ())
        if (one["load"], one["clients"]) == (load, clients)
    ]


def answers_in(one: Figures) -> int:
    return sum(map(len, one["latencies"].values()))


def per_second(figures: Figures, competitor: str, load: str, clients: int) -> Spread | None:
    found = [answers_in(one) / one["seconds"] for one in measured(figures, competitor, load, clients)]
    return Spread.of(found) if found else None


def seconds(figures: Figures, competitor: str, load: str, clients: int, kind: str | None = None) -> Spread | None:
    """Return the latency of all requests, or of those of one kind."""
    found = [
        value
        for one in measured(figures, competitor, load, clients)
        for name, values in one["latencies"].items()
        if kind in (None, name)
        for value in values
    ]
    return Spread.of(found) if found else None


def in_all(figures: Figures, competitor: str, load: str, clients: int) -> Spread | None:
    """Return the seconds until all requests of a load were answered."""
    found = [one["seconds"] for one in measured(figures, competitor, load, clients)]
    return Spread.of(found) if found else None


def rate(figures: Figures, competitor: str, task: str, clients: int) -> Spread | None:
    """Return answers per second; a script serves many clients one after another, so its rate is that of one."""
    return per_second(figures, competitor, task, clients) or per_second(figures, competitor, task, 1)


def value(figures: Figures, competitor: str, name: str) -> float | None:
    """Return the highest of a competitor's values of this name, such as its memory."""
    found = [run[name] for run in figures["runs"] if run["competitor"] == competitor and name in run]
    return max(found, default=None)


def dollars_per_million(figures: Figures, answers_per_second: float) -> float:
    """Return the price of an hour, over the answers of an hour, times a million."""
    return float(figures.get("dollars_an_hour", DOLLARS_AN_HOUR)) / (answers_per_second * 3600) * 1e6


def limits(figures: Figures) -> Callable[[int, int], float]:
    """Return (clients, tokens) -> answers per second, by the best rates that the machine showed during the runs.

    An answer takes the operations of both encoders, at the rate of large bfloat16 matrix products. Each token takes
    one reading of the decoder's int8 weights, which all clients share. Keys and values are not counted.
    """
    machines = [run["machine"] for run in figures["runs"] if "machine" in run]
    flops, read = (max(machine[rate] for machine in machines) for rate in ("bfloat16_flops", "bytes_read"))
    work = figures["work"]
    return lambda clients, tokens: 1 / (work["flops"] / flops + tokens * work["step_bytes"] / clients / read)
