"""What a competitor holds in memory: the proportional set size of all processes that this one has started.

Competitors run one after the other, so all of them are the competitor's. Shared pages count once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

SECONDS_BETWEEN_SAMPLES = 0.5


class PeakMemory:
    """`mib` is the most that was seen while the `with` block lasted."""

    mib = 0.0

    def __enter__(self) -> PeakMemory:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
            self.mib = max(self.mib, sum(map(proportional_mib, descendants(os.getpid()))))


def descendants(process: int) -> Iterator[int]:
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = listed.read_text().split()
        except OSError:
            continue  # a thread that has just ended
        for child in map(int, children):
            yield child
            yield from descendants(child)


def proportional_mib(process: int) -> float:
    """0 once the process has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
