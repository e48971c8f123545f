"""How far a long run is: a bar on a terminal where tqdm is installed, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from florence2_client import retry

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_RETRIES_SAID = 15.0


class Progress:
    """Counts up to `total`, of which `done` were done before."""

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total, self._before, self._count = total, done, done
        self._start = self._last_line = time.monotonic()
        self._bar = _bar(total, done, self._stream)

    def step(self) -> None:
        self._count += 1
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(self._state())

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _state(self) -> str:
        rate = (self._count - self._before) / (time.monotonic() - self._start)
        left = (self._total - self._count) / rate if rate else float("inf")
        return f"{self._count}/{self._total} {self._count / self._total:.0%}, {rate:.1f}/s, {_clock(left)} left"


@contextmanager
def retries_said(progress: Progress) -> Iterator[None]:
    """While it lasts, a line now and then tells that the server is waited for; else the bar would just stand still."""
    handler, level = _SayRetries(progress), retry.LOG.level
    retry.LOG.addHandler(handler)
    retry.LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        retry.LOG.removeHandler(handler)
        retry.LOG.setLevel(level)


class _SayRetries(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.created >= self._next:
            self._next = record.created + SECONDS_BETWEEN_RETRIES_SAID
            self._progress.say(record.getMessage())


def _bar(total: int, done: int, stream: TextIO) -> Any:
    if not stream.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=done, file=stream, unit="answer", dynamic_ncols=True, smoothing=0.05)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
