"""Merge the answers to overlapping parts of an image and to the whole image into one answer.

Two answers about the same object or line agree where both parts show it: their boxes, clipped to the part of the image
that both saw, nearly coincide. `boxes` and `lines` are built on that; `stitching` joins the texts of cut lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Quads
from florence2.errors import InternalError
from florence2.locations import to_bin
from florence2_client.merging.boxes import merge_boxes
from florence2_client.merging.lines import merge_lines
from florence2_client.merging.pieces import Nearby, Piece, View, around, flat, moved

__all__ = ["View", "generated_text", "merge"]


def merge(views: Sequence[View], *, by_label: bool) -> Answer:
    """Return one answer for the whole image, which must be the first view.

    by_label: only objects of the same label can be the same; where labels are sentences, they vary too much for that.
    Raise InternalError if the answers are of different types, or of one that cannot be merged.
    """
    kind = type(views[0].answer)
    if kind not in (Boxes, Quads, BoxesAndPolygons) or any(type(view.answer) is not kind for view in views):
        raise InternalError("the answers about the tiles have different forms, so they cannot be merged")
    boxes = [view.box for view in views if not view.whole]
    tiles: Nearby[View] = Nearby(max((x2 - x1 for x1, _, x2, _ in boxes), default=1.0))
    for view in views:
        if not view.whole:
            tiles.add(view.box, view)
    merged: dict[str, Any] = {}
    for shapes, labels, extras in _tables(kind):
        pieces = [piece for view in views for piece in _pieces(view, views[0].box, shapes, labels, extras)]
        kept = merge_lines(pieces, tiles) if kind is Quads else merge_boxes(pieces, tiles, by_label)
        merged |= {shapes: [piece.shape for piece in kept], labels: [piece.label for piece in kept]}
        for name in extras:
            values = [piece.values[name] for piece in kept]
            given = any(getattr(view.answer, name) is not None for view in views)
            merged[name] = values if given and None not in values else None
    return kind(**merged)


def _tables(kind: type[Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the names of the lists that belong together: shapes, their labels, and further values of each."""
    names = [field.name for field in fields(kind)]
    if kind is not BoxesAndPolygons:
        yield names[0], names[1], names[2:]
        return
    of_polygons = [name for name in names if name.startswith("polygons")]
    yield "polygons", "polygons_labels", [name for name in of_polygons if name not in ("polygons", "polygons_labels")]
    rest = [name for name in names if name not in of_polygons and name not in ("bboxes", "bboxes_labels")]
    yield "bboxes", "bboxes_labels", rest


def _pieces(
    view: View, image: tuple[int, int, int, int], shapes: str, labels: str, extras: Sequence[str]
) -> Iterator[Piece]:
    answer: Any = view.answer
    for index, (shape, label) in enumerate(zip(getattr(answer, shapes), getattr(answer, labels), strict=True)):
        if not flat(shape):
            continue
        values = {name: listed[index] if (listed := getattr(answer, name)) else None for name in extras}
        placed = moved(shape, view.box[0], view.box[1])
        box = around(flat(placed))
        yield Piece(view, label, placed, values, box, view.cuts(box, image))


def generated_text(answer: Answer, size: tuple[int, int]) -> str:
    """Return the text that a model would generate to give this answer about an image of `size` (width, height)."""

    def locations(coordinates: Sequence[float]) -> str:
        return "".join(f"<loc_{to_bin(value, size[place % 2])}>" for place, value in enumerate(coordinates))

    match answer:
        case Boxes():
            found = zip(answer.labels, answer.bboxes, strict=True)
        case Quads():
            found = zip(answer.labels, answer.quad_boxes, strict=True)
        case BoxesAndPolygons():
            boxes = "".join(
                label + locations(box) for label, box in zip(answer.bboxes_labels, answer.bboxes, strict=True)
            )
            return boxes + "".join(
                f"{label}<poly>{'<sep>'.join(map(locations, polygons))}</poly>"
                for label, polygons in zip(answer.polygons_labels, answer.polygons, strict=True)
            )
        case _:
            return ""
    return "".join(label + locations(shape) for label, shape in found)
