"""Views and pieces: what each part of the image was answered, in pixels of the whole image, and how boxes overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from florence2.answers import Answer

Box: TypeAlias = tuple[float, float, float, float]  # x1, y1, x2, y2
ItemT = TypeVar("ItemT")

# Of a tile's side: what ends nearer than this to a tile's border may be cut by it. On scenes with 8-pixel text the
# recall is 0.56 with 0.01, 0.79 with 0.03, and 0.85 with 0.04 to 0.06: models end a cut word before the border.
BORDER = 0.04
REFUTED = 0.5  # of a cut piece: if another tile shows as much and finds nothing there, nothing is there


@dataclass(frozen=True, eq=False)
class View:
    """A part of the image that was sent by itself, and the answer in pixels of that part."""

    box: tuple[int, int, int, int]
    answer: Answer
    whole: bool = False

    def cuts(self, box: Box, image: Box) -> tuple[bool, bool, bool, bool]:
        """Return whether the left, top, right and bottom border of the view may cut a box."""
        x_margin, y_margin = BORDER * (self.box[2] - self.box[0]), BORDER * (self.box[3] - self.box[1])
        return (
            image[0] < self.box[0] >= box[0] - x_margin,
            image[1] < self.box[1] >= box[1] - y_margin,
            image[2] > self.box[2] <= box[2] + x_margin,
            image[3] > self.box[3] <= box[3] + y_margin,
        )


@dataclass(frozen=True, eq=False)
class Piece:
    """One object or line of a view's answer.

    `shape` is a flat list of coordinates, or the polygons of one object. `values` is what else the answer has for each
    object, such as its score.
    """

    view: View
    label: str
    shape: list[Any]
    values: dict[str, float | None]
    box: Box
    cut: tuple[bool, bool, bool, bool]  # on the left, top, right and bottom


def moved(shape: Sequence[Any], x: float, y: float) -> list[Any]:
    """Return flat coordinates, or lists of them at any depth, moved by x and y."""
    if shape and isinstance(shape[0], list):
        return [moved(inner, x, y) for inner in shape]
    return [value + (y if place % 2 else x) for place, value in enumerate(shape)]


def flat(shape: Sequence[Any]) -> list[float]:
    """Return all coordinates in one list."""
    if shape and isinstance(shape[0], list):
        return [value for inner in shape for value in flat(inner)]
    return list(shape)


def around(coordinates: Sequence[float]) -> Box:
    """Return the box around x, y, x, y, ..."""
    xs, ys = coordinates[0::2], coordinates[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def clip(box: Box, part: Sequence[float]) -> Box | None:
    """Return what of a box lies in a part of the image."""
    x1, y1, x2, y2 = max(box[0], part[0]), max(box[1], part[1]), min(box[2], part[2]), min(box[3], part[3])
    return (x1, y1, x2, y2) if x1 <= x2 and y1 <= y2 else None


def area(box: Box | None) -> float:
    """Return the area with the pixels of both edges, so that a box of one pixel has one."""
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1) if box else 0.0


def iou(one: Box, other: Box) -> float:
    """Return the intersection over the union."""
    shared = area(clip(one, other))
    return shared / (area(one) + area(other) - shared)


def smaller_share(one: Box, other: Box) -> float:
    """Return the intersection over the smaller area."""
    return area(clip(one, other)) / min(area(one), area(other))


def seen_by_both(one: Piece, other: Piece) -> tuple[Box, Box] | None:
    """Return both boxes, clipped to what both views show; None if one of them is not there."""
    part = clip(one.view.box, other.view.box)
    if part is None:
        return None
    first, second = clip(one.box, part), clip(other.box, part)
    return (first, second) if first and second else None


def is_refuted(piece: Piece, tiles: Nearby[View]) -> bool:
    """Return whether a cut piece that no other view agrees with is mostly in another tile, which should show it too."""
    return any(piece.cut) and any(
        view is not piece.view and area(clip(piece.box, view.box)) >= REFUTED * area(piece.box)
        for view in tiles.near(piece.box)
    )


class Nearby(Generic[ItemT]):
    """Items by place, so that thousands of them need not all be compared with each other."""

    def __init__(self, cell: float) -> None:
        self.cell = max(cell, 1.0)
        self._items: dict[tuple[int, int], list[ItemT]] = defaultdict(list)

    def add(self, box: Box, item: ItemT) -> None:
        for cell in self._cells(box):
            self._items[cell].append(item)

    def near(self, box: Box) -> list[ItemT]:
        """Return the items whose boxes may touch this one, in the order in which they were added to its cells."""
        return list({id(item): item for cell in self._cells(box) for item in self._items.get(cell, ())}.values())

    def _cells(self, box: Box) -> Iterator[tuple[int, int]]:
        x1, y1, x2, y2 = (int(value // self.cell) for value in box)
        return ((x, y) for y in range(y1, y2 + 1) for x in range(x1, x2 + 1))
