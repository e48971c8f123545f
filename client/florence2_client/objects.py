"""Things found in a picture, in one form whatever the task. Result, drawing and the formats read answers here."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.locations import to_pixel

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]

REGION_IN_TEXT = re.compile(r"(?<!>)(?:<loc_\d+>){4}(?!<loc_)")


class Shape(enum.Enum):
    """What the model outlined the thing with."""

    BOX = "box"
    QUAD = "quad"  # a line of text
    POLYGON = "polygon"


@dataclass(frozen=True)
class Found:
    """One thing found. Coordinates are pixels of the picture as displayed.

    >>> star = client.detect("scene.png").objects[0]
    >>> star.label, star.shape.value, star.polygons
    ('star', 'box', ())
    """

    label: str  # "" where the task gives none
    box: Box  # x1, y1, x2, y2 around all of it
    shape: Shape = Shape.BOX
    score: float | None = None  # of box tasks
    polygons: tuple[tuple[Point, ...], ...] = ()  # outlines of QUAD (one, of four corners) and POLYGON


def found_in(answer: Answer, size: tuple[int, int]) -> list[Found]:
    """All things an answer about a picture of `size` (width, height) tells the place of."""
    match answer:
        case Boxes():
            return _boxes(answer.bboxes, answer.labels, answer.scores)
        case Quads():
            quads = zip(answer.quad_boxes, answer.labels, strict=True)
            return [_outlined(Shape.QUAD, [quad], label) for quad, label in quads]
        case Polygons():
            return _polygons(answer.polygons, answer.labels)
        case BoxesAndPolygons():
            boxes = _boxes(answer.bboxes, answer.bboxes_labels, answer.scores)
            return boxes + _polygons(answer.polygons, answer.polygons_labels)
        case TextAnswer():
            label = text_alone(answer.text)
            return [Found(label, region_box(region, size)) for region in REGION_IN_TEXT.findall(answer.text)]


def text_alone(text: str) -> str:
    """A text answer without location tokens. Region tasks leave the region in it: `car<loc_1><loc_2><loc_3><loc_4>`."""
    return re.sub(r"<loc_\d+>", "", text).strip()


def region_box(region: str, size: tuple[int, int]) -> Box:
    """x1, y1, x2, y2 in pixels of what REGION_IN_TEXT finds."""
    x1, y1, x2, y2 = (
        to_pixel(int(location), extent)
        for location, extent in zip(re.findall(r"\d+", region), size * 2, strict=True)
    )  # fmt: skip
    return x1, y1, x2, y2


def _boxes(boxes: Iterable[Sequence[float]], labels: Iterable[str], scores: Sequence[float] | None) -> list[Found]:
    return [
        Found(label, (x1, y1, x2, y2), score=scores[index] if scores else None)
        for index, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True))
    ]


def _polygons(instances: Iterable[Iterable[Sequence[float]]], labels: Iterable[str]) -> list[Found]:
    """An instance without a single point is nowhere, and left out."""
    return [
        _outlined(Shape.POLYGON, polygons, label)
        for instance, label in zip(instances, labels, strict=True)
        if any(polygons := list(instance))
    ]


def _outlined(shape: Shape, flat_polygons: Iterable[Sequence[float]], label: str) -> Found:
    polygons = tuple(tuple(zip(flat[0::2], flat[1::2], strict=True)) for flat in flat_polygons)
    xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
    return Found(label, (min(xs), min(ys), max(xs), max(ys)), shape, polygons=polygons)
