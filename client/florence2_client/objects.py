"""Objects found in an image, in one form for all tasks. Result, drawing and the file formats read answers here."""

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
    """The form in which the model locates an object."""

    BOX = "box"
    QUAD = "quad"  # a line of text
    POLYGON = "polygon"


@dataclass(frozen=True)
class Found:
    """An object in the image. Coordinates are pixels of the image as displayed.

    >>> star = client.detect("scene.png").objects[0]
    >>> star.label, star.shape.value, star.polygons
    ('star', 'box', ())
    """

    label: str  # "" if the task gives none
    box: Box  # x1, y1, x2, y2 around the whole object
    shape: Shape = Shape.BOX
    score: float | None = None  # from tasks that answer with boxes
    polygons: tuple[tuple[Point, ...], ...] = ()  # one of four corners for QUAD, one or more for POLYGON


def found_in(answer: Answer, size: tuple[int, int]) -> list[Found]:
    """Return the objects that an answer locates in an image of `size` (width, height)."""
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
            label = plain_text(answer.text)
            return [Found(label, region_box(region, size)) for region in REGION_IN_TEXT.findall(answer.text)]


def plain_text(text: str) -> str:
    """Return a text answer without location tokens, which region tasks append: `car<loc_1><loc_2><loc_3><loc_4>`."""
    return re.sub(r"<loc_\d+>", "", text).strip()


def region_box(region: str, size: tuple[int, int]) -> Box:
    """Return x1, y1, x2, y2 in pixels of a match of REGION_IN_TEXT."""
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
    """Leave out instances without a single point."""
    return [
        _outlined(Shape.POLYGON, polygons, label)
        for instance, label in zip(instances, labels, strict=True)
        if any(polygons := list(instance))
    ]


def _outlined(shape: Shape, flat_polygons: Iterable[Sequence[float]], label: str) -> Found:
    polygons = tuple(tuple(zip(flat[0::2], flat[1::2], strict=True)) for flat in flat_polygons)
    xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
    return Found(label, (min(xs), min(ys), max(xs), max(ys)), shape, polygons=polygons)
