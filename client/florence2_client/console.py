"""Answers, task table and summary as lines of text for people. The command line prints them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from florence2.results import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.tasks import TASKS, Grammar, TaskInput
from florence2_client.objects import REGION_IN_TEXT, region_box
from florence2_client.result import Result

NOTHING = "(nothing found)"
INPUTS = {TaskInput.NONE: "-", TaskInput.TEXT: "text", TaskInput.REGION: "region"}
ANSWERS = {
    Grammar.TEXT: "text",
    Grammar.OCR: "quads",
    Grammar.LABELLED_BOXES: "boxes",
    Grammar.BARE_BOXES: "boxes",
    Grammar.GROUNDING: "boxes",
    Grammar.POLYGONS: "polygons",
    Grammar.BOXES_OR_POLYGONS: "boxes or polygons",
}

Row = Sequence[str]


def answer_lines(answer: Answer, size: tuple[int, int]) -> list[str]:
    """The answer about a picture of a size (width, height): an aligned table, or text with its regions in pixels."""
    if isinstance(answer, TextAnswer):
        text = REGION_IN_TEXT.sub(lambda found: f" [{_points(region_box(found[0], size))}]", answer.text)
        return text.splitlines() or ["(no text)"]
    rows = list(_rows(answer))
    return table(rows) if len(rows) > 1 else [NOTHING]


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
    return f"{result.num_tokens} tokens, {finish}, picture {width}x{height}, {milliseconds:.0f} ms"


def task_lines() -> list[str]:
    """The table of all tasks."""
    rows = [(task.name, INPUTS[task.input], ANSWERS[task.grammar], task.summary) for task in TASKS.values()]
    return table([("task", "takes", "answers with", "what it is"), *rows])


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as lines with aligned columns."""
    cells = [[" ".join(cell.split()) or "-" for cell in row] for row in rows]
    widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - _columns(cell))


def _columns(cell: str) -> int:
    """Columns on a terminal: East Asian characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in cell)
    return len(cell) + wide - sum(map(bool, map(unicodedata.combining, cell)))
