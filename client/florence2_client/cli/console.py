"""Print answers, tables and summaries as lines of text or as JSON, and show the progress of a long run."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from types import TracebackType
from typing import Any, TextIO

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from florence2.answers import Answer, Boxes, Polygons, Quads, TextAnswer
from florence2.server.options import DEMO, ServingOptions
from florence2.tasks import TASKS, Grammar, TaskInput
from florence2_client import exchange
from florence2_client.objects import LOCATIONS, Found, Shape, found_in
from florence2_client.result import Result

NOTHING = "(nothing found)"
INPUTS = {TaskInput.NONE: "-", TaskInput.TEXT: "text", TaskInput.REGION: "region"}
ANSWERS = {
    Grammar.TEXT: "text",
    Grammar.OCR: "quads",
    Grammar.LABELED_BOXES: "boxes",
    Grammar.BARE_BOXES: "boxes",
    Grammar.GROUNDING: "boxes",
    Grammar.POLYGONS: "polygons",
    Grammar.BOXES_OR_POLYGONS: "boxes or polygons",
}

HEADINGS = {
    Shape.BOX: ("label", "confidence", "box (x1,y1 x2,y2)"),
    Shape.QUAD: ("label", "confidence", "corners (x1,y1 x2,y2 x3,y3 x4,y4)"),
    Shape.POLYGON: ("label", "confidence", "points", "extent (x1,y1 x2,y2)"),
}

STYLES = {"bold": "1", "red": "31", "dim": "2"}  # of ECMA-48's SGR
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_RETRY_LINES = 15.0

Row = Sequence[str]


def styled(text: str, style: str, stream: TextIO) -> str:
    """Style the text if the stream is a terminal with styles, unless NO_COLOR (no-color.org) is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def complain(message: object) -> None:
    """Print what went wrong on standard error, with commands that can be pasted here."""
    print(f"{styled('florence2:', 'red', sys.stderr)} {pasteable(str(message))}", file=sys.stderr)


def pasteable(message: str) -> str:
    """Return a message whose commands work in this shell and folder.

    Where its environment is not active, `florence2` is not on the PATH, and is named as it was started. If only `make
    demo` has made a repository, `florence2 serve` names that one.
    """
    if DEMO.is_dir() and not ServingOptions.repository.is_dir():
        message = message.replace("`florence2 serve", f"`florence2 serve --repository {DEMO}")
    started = sys.argv[0]
    if os.path.basename(started) != "florence2" or shutil.which("florence2"):
        return message
    return re.sub(r"((?<=`)|(?<=: ))florence2 (?=[a-z])", f"{started} ", message)


def json_line(value: Any) -> str:
    """Return compact JSON, in ASCII if standard output does not take Unicode."""
    unicode = str(getattr(sys.stdout, "encoding", "")).lower().replace("-", "").startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode)


def answer_lines(answer: Answer, size: tuple[int, int]) -> list[str]:
    """Return an answer for an image of `size` (width, height): a table, or text with its regions in pixels."""
    objects = found_in(answer, size)
    if isinstance(answer, TextAnswer) and (len(objects) < 2 or not answer.text.endswith(">")):
        return _text_with_regions(answer.text, size) or ["(no text)"]
    return table(list(_rows(objects))) if objects else [NOTHING]


def growing_text(result: Result[Answer]) -> str:
    """Return the text of an answer that may still grow; it begins with the text of each earlier result.

    So rows are not aligned, and everything that can still change is left out: an incomplete region, a polygon that may
    grow, rows that others may come before.
    """
    answer = result.answer
    if isinstance(answer, TextAnswer):
        words = answer.text if result.final else answer.text.partition("<")[0].rstrip()
        return "\n".join(_text_with_regions(words, result.image_size)) or ("(no text)" if result.final else "")
    rows = ["  ".join(row) for row in _rows(result.objects)]
    if result.final:
        return "\n".join(rows) or NOTHING
    settled = {Boxes: len(rows), Quads: len(rows), Polygons: len(rows) - 1}.get(type(answer), 0)
    return "\n".join(rows[:settled]) if len(rows) > 1 else ""


def _text_with_regions(text: str, size: tuple[int, int]) -> list[str]:
    def in_pixels(region: re.Match[str]) -> str:
        return "".join(f" [{_points(found.box)}]" for found in found_in(TextAnswer(region[0]), size)) or region[0]

    return LOCATIONS.sub(in_pixels, text).splitlines()


def _rows(objects: Iterable[Found]) -> Iterable[Row]:
    """Yield a heading per shape and a row per object."""
    for shape, group in groupby(objects, lambda found: found.shape):
        yield HEADINGS[shape]
        for found in group:
            named = found.label, "-" if found.confidence is None else f"{found.confidence:.2f}"
            match shape:
                case Shape.BOX:
                    yield *named, _points(found.box)
                case Shape.QUAD:
                    yield *named, _points([number for point in found.polygons[0] for number in point])
                case Shape.POLYGON:
                    yield *named, str(sum(map(len, found.polygons))), _points(found.box)


def _points(flat: Sequence[float]) -> str:
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in zip(flat[0::2], flat[1::2], strict=True))


def summary_line(result: Result, milliseconds: float | None = None) -> str:
    """Return one line about how the answer was generated."""
    width, height = result.image_size
    finish = "stop" if result.finish_reason == "stop" else f"{result.finish_reason} (cut off)"
    took = "" if milliseconds is None else f", {milliseconds:.0f} ms"
    return styled(f"{result.num_tokens} tokens, {finish}, image {width}x{height}{took}", "dim", sys.stdout)


def title_of(result: Result) -> str:
    """Return the task's name and the text of the request: `open_vocabulary_detection: a dog`."""
    name = TASKS[result.task].name if result.task in TASKS else result.task
    return f"{name}: {result.prompt_text}" if result.prompt_text else name


def task_lines() -> list[str]:
    """Return the table of all tasks."""
    rows = [(task.name, INPUTS[task.input], ANSWERS[task.grammar], task.summary) for task in TASKS.values()]
    return table([("task", "takes", "answers with", "what it is"), *rows])


def table(rows: Sequence[Row], numbers: bool = False, heading: bool = True) -> list[str]:
    """Return rows as lines with aligned columns, numbers to the right. The first row may be a heading."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in rows[0]:
        grid.add_column(justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(" ".join(cell.split()) or "-") for cell in row))
    output = io.StringIO()
    Console(file=output, width=10_000, color_system=None).print(grid)
    first, *lines = [line.rstrip() for line in output.getvalue().splitlines()]
    return [styled(first, "bold", sys.stdout) if heading else first, *lines]


# ---- the progress of a long run: a bar on a terminal, a line now and then elsewhere


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
            self._progress.say(pasteable(record.getMessage()))
