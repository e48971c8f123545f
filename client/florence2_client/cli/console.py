"""Answers, tables and summaries as lines for people, and as JSON for programs. The commands print them."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.tasks import TASKS, Grammar, TaskInput
from florence2_client.objects import REGION_IN_TEXT, region_box
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

STYLES = {"bold": "1", "red": "31", "dim": "2"}  # of ECMA-48's SGR

Row = Sequence[str]


def styled(text: str, style: str, stream: TextIO) -> str:
    """In a style where the stream is a terminal that has them, and nobody asked for NO_COLOR (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def complain(message: object) -> None:
    """What went wrong, on standard error."""
    print(f"{styled('florence2:', 'red', sys.stderr)} {message}", file=sys.stderr)


def json_line(value: Any) -> str:
    """Compact JSON; in ASCII where standard output takes no more."""
    unicode = str(getattr(sys.stdout, "encoding", "")).lower().replace("-", "").startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode)


def answer_lines(answer: Answer, size: tuple[int, int]) -> list[str]:
    """The answer about a picture of a size (width, height): an aligned table, or text with its regions in pixels."""
    if isinstance(answer, TextAnswer):
        text = REGION_IN_TEXT.sub(lambda found: f" [{_points(region_box(found[0], size))}]", answer.text)
        return text.splitlines() or ["(no text)"]
    rows = list(_rows(answer))
    return table(rows) if len(rows) > 1 else [NOTHING]


def growing_text(result: Result[Answer]) -> str:
    """As `answer_lines`, of an answer that may go on: it begins with what it was for the results before.

    So rows are not aligned, and what can still change is left out: half a region, and rows that others may come before
    or, as an outline's, grow.
    """
    answer = result.answer
    if isinstance(answer, TextAnswer):
        words = answer if result.final else TextAnswer(answer.text.partition("<")[0].rstrip())
        return "\n".join(answer_lines(words, result.image_size)) if words.text or result.final else ""
    rows = ["  ".join(row) for row in _rows(answer)]
    if result.final:
        return "\n".join(rows) if len(rows) > 1 else NOTHING
    settled = {Boxes: len(rows), Quads: len(rows), Polygons: len(rows) - 1}.get(type(answer), 0)
    return "\n".join(rows[:settled]) if len(rows) > 1 else ""


def _rows(answer: Answer) -> Iterable[Row]:
    """A heading and a row per thing found."""
    match answer:
        case Boxes():
            yield from _box_rows(answer.bboxes, answer.labels, answer.scores)
        case Quads():
            yield "label", "corners (x1,y1 x2,y2 x3,y3 x4,y4)"
            for quad, label in zip(answer.quad_boxes, answer.labels, strict=True):
                yield label, _points(quad)
        case Polygons():
            yield from _polygon_rows(answer.polygons, answer.labels)
        case BoxesAndPolygons():
            if answer.bboxes:
                yield from _box_rows(answer.bboxes, answer.bboxes_labels, answer.scores)
            if answer.polygons:
                yield from _polygon_rows(answer.polygons, answer.polygons_labels)


def _box_rows(boxes: Sequence[Sequence[float]], labels: Sequence[str], scores: Sequence[float] | None) -> Iterable[Row]:
    yield ("label", "score", "box (x1,y1 x2,y2)")
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        yield label, f"{scores[index]:.2f}" if scores else "-", _points(box)


def _polygon_rows(instances: Sequence[Sequence[Sequence[float]]], labels: Sequence[str]) -> Iterable[Row]:
    yield ("label", "points", "extent (x1,y1 x2,y2)")
    for instance, label in zip(instances, labels, strict=True):
        xs = [x for polygon in instance for x in polygon[0::2]]
        ys = [y for polygon in instance for y in polygon[1::2]]
        extent = _points([min(xs), min(ys), max(xs), max(ys)]) if ys else "-"
        yield label, str(len(xs)), extent


def _points(flat: Sequence[float]) -> str:
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in zip(flat[0::2], flat[1::2], strict=True))


def summary_line(result: Result, milliseconds: float) -> str:
    """How the answer came about."""
    width, height = result.image_size
    finish = "stop" if result.finish_reason == "stop" else f"{result.finish_reason} (cut off)"
    line = f"{result.num_tokens} tokens, {finish}, picture {width}x{height}, {milliseconds:.0f} ms"
    return styled(line, "dim", sys.stdout)


def task_lines() -> list[str]:
    """The table of all tasks."""
    rows = [(task.name, INPUTS[task.input], ANSWERS[task.grammar], task.summary) for task in TASKS.values()]
    return table([("task", "takes", "answers with", "what it is"), *rows])


def table(rows: Sequence[Row], numbers: bool = False, heading: bool = True) -> list[str]:
    """Rows as lines with aligned columns, numbers to the right; the first may be a heading."""
    cells = [[" ".join(cell.split()) or "-" for cell in row] for row in rows]
    widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
    padded = [[_padded(cell, width, numbers) for cell, width in zip(row, widths, strict=True)] for row in cells]
    first, *lines = ["  ".join(row).rstrip() for row in padded]
    return [styled(first, "bold", sys.stdout) if heading else first, *lines]


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _columns(cell))
    return space + cell if right else cell + space


def _columns(cell: str) -> int:
    """Columns on a terminal: East Asian characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in cell)
    return len(cell) + wide - sum(map(bool, map(unicodedata.combining, cell)))
