"""The progress of a long run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TextIO

from rich import progress as bars
from rich.console import Console

from florence2_client import exchange

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_RETRY_LINES = 15.0


class Progress:
    """Counts up to `total`, of which an earlier run has done `done`."""

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        """Show nothing yet; the bar appears on entering the context."""
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._total, self._before, self._count = total, done, done
        self._start = self._last_line = time.monotonic()
        self._bar = bars.Progress(
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TaskProgressColumn(show_speed=True),
            bars.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal or self._console.is_dumb_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def step(self) -> None:
        """Count one more; without a bar, print a line every ten seconds."""
        self._count += 1
        self._bar.advance(self._task)
        if self._bar.disable and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            rate = (self._count - self._before) / (time.monotonic() - self._start)
            left = timedelta(seconds=round((self._total - self._count) / rate))
            self.say(f"{self._count}/{self._total} {self._count / self._total:.0%}, {rate:.1f}/s, {left} left")

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(line, markup=False, emoji=False)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


@contextmanager
def retries_shown(progress: Progress) -> Iterator[None]:
    """Print a line now and then while the client waits for the server; the bar would only stand still."""
    handler, level = _RetryLines(progress), exchange.LOG.level
    exchange.LOG.addHandler(handler)
    exchange.LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        exchange.LOG.removeHandler(handler)
        exchange.LOG.setLevel(level)


class _RetryLines(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.created >= self._next:
            self._next = record.created + SECONDS_BETWEEN_RETRY_LINES
            self._progress.say(record.getMessage())
