"""Merge boxes and polygons: one object seen in several views becomes one piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from florence2_client.merging.pieces import (
    Nearby,
    Piece,
    View,
    area,
    around,
    flat,
    iou,
    is_refuted,
    seen_by_both,
    smaller_share,
)

SAME = 0.5  # intersection over union of two boxes of one object
PART = 0.75  # intersection over the smaller area of a cut box and one that it is a part of


@dataclass(eq=False)
class Group:
    """Pieces of one object. The first one is the best: uncut in a tile, else of the whole image, else cut."""

    pieces: list[Piece] = field(default_factory=list)  # at most one of each view
    views: set[int] = field(default_factory=set)

    def merged(self) -> Piece:
        """Return the best piece, or all of a cut object together."""
        best = self.pieces[0]
        if len(self.pieces) == 1 or not any(best.cut):
            return best
        coordinates = [number for piece in self.pieces for number in flat(piece.shape)]
        if isinstance(best.shape[0], list):
            shape = [polygon for piece in self.pieces for polygon in piece.shape]
        else:
            shape = list(around(coordinates))
        return dataclasses.replace(best, shape=shape, values=least_values(self.pieces), box=around(coordinates))


def merge_boxes(pieces: Sequence[Piece], tiles: Nearby[View], by_label: bool) -> list[Piece]:
    """Return one piece for each object, from top to bottom.

    A piece joins the group that it agrees with best, but never one that has a piece of the same view: what one answer
    says is two objects are two. Where no view shows an object uncut, its cut pieces are put together.
    """
    groups: list[Group] = []
    nearby: Nearby[Group] = Nearby(tiles.cell)
    for piece in sorted(pieces, key=lambda piece: (any(piece.cut), piece.view.whole, -area(piece.box))):
        best, group = 0.0, None
        for other in nearby.near(piece.box):
            if id(piece.view) not in other.views:
                match = max(agreement(piece, member, by_label) for member in other.pieces)
                if match > best:
                    best, group = match, other
        if group is None:
            group = Group([piece])
            groups.append(group)
        elif best >= SAME:
            group.pieces.append(piece)
        group.views.add(id(piece.view))
        nearby.add(piece.box, group)
    kept = (group for group in groups if len(group.views) > 1 or not is_refuted(group.pieces[0], tiles))
    return sorted((group.merged() for group in kept), key=lambda piece: (piece.box[1], piece.box[0]))


def agreement(one: Piece, other: Piece, by_label: bool) -> float:
    """Return the intersection over union where both views look, or less than SAME for a part of a cut box, else 0."""
    if by_label and one.label.casefold() != other.label.casefold():
        return 0.0
    seen = seen_by_both(one, other)
    if seen is None:
        return 0.0
    overlap = iou(*seen)
    if overlap >= SAME:
        return overlap
    is_part = (any(one.cut) or any(other.cut)) and smaller_share(*seen) >= PART
    return SAME * smaller_share(*seen) * 0.99 if is_part else 0.0


def least_values(pieces: Sequence[Piece]) -> dict[str, float | None]:
    """Return the lowest of each value: an object put together from pieces is as certain as the least certain one."""
    merged: dict[str, float | None] = {}
    for name in pieces[0].values:
        known = [value for piece in pieces if (value := piece.values[name]) is not None]
        merged[name] = min(known) if len(known) == len(pieces) else None
    return merged
