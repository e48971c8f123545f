"""Merge lines of text: pieces of a line that tiles cut are put together, and all lines are in reading order."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from florence2_client.merging.boxes import least_values
from florence2_client.merging.pieces import (
    Box,
    Nearby,
    Piece,
    View,
    area,
    around,
    clip,
    is_refuted,
    seen_by_both,
    smaller_share,
)
from florence2_client.merging.stitching import Stretch, stitch

SAME_LINE = 0.5  # intersection over the smaller area of two pieces of one line
MOSTLY = 0.75  # of a cut piece that an uncut one replaces
EQUAL_HEIGHT = 0.5  # of the higher one of two pieces of one line
LEGIBLE = 0.015  # of the image's longer side, 11 of 768 pixels: the whole image is good enough for lines of that height
COLUMN_LINES, COLUMN_LETTERS = 3, 20  # from which a block of lines is a column of prose, and not of a table


def is_vertical(piece: Piece) -> bool:
    """Return whether the line runs up or down: the upper edge of its quad, from the first to the second corner."""
    x1, y1, x2, y2 = piece.shape[:4]
    return abs(y2 - y1) > abs(x2 - x1)


def height(piece: Piece) -> float:
    """Return the extent across the line."""
    return piece.box[2] - piece.box[0] if is_vertical(piece) else piece.box[3] - piece.box[1]


def is_cut_across(piece: Piece) -> bool:
    """Return whether a border runs along the line, so that only a part of the letters' height is there."""
    return any(piece.cut[0::2] if is_vertical(piece) else piece.cut[1::2])


def stretch_of(piece: Piece) -> Stretch:
    """Return the text between its two ends along the direction of reading."""
    axis = int(is_vertical(piece))
    forward = piece.shape[2 + axis] >= piece.shape[axis]
    start, end = piece.box[axis], piece.box[axis + 2]
    cut_start, cut_end = piece.cut[axis], piece.cut[axis + 2]
    if forward:
        return Stretch(piece.label, start, end, cut_start, cut_end)
    return Stretch(piece.label, -end, -start, cut_end, cut_start)


def merge_lines(pieces: Sequence[Piece], tiles: Nearby[View]) -> list[Piece]:
    """Return the lines of all views in reading order, each once."""
    found = clusters([piece for piece in pieces if not piece.view.whole], tiles.cell)
    lines = [Line.of(cluster) for cluster in found if len(cluster) > 1 or not is_refuted(cluster[0], tiles)]
    nearby: Nearby[Line] = Nearby(tiles.cell)
    for line in lines:
        nearby.add(line.piece.box, line)
    dropped: set[int] = set()
    kept: list[Piece] = []
    for whole in (piece for piece in pieces if piece.view.whole):
        rivals = [line for line in nearby.near(whole.box) if smaller_share(line.piece.box, whole.box) >= SAME_LINE]
        if not rivals:
            kept.append(whole)
        elif is_better(whole, rivals):
            dropped.update(map(id, rivals))
            kept.append(whole)
    return reading_order(kept + [line.piece for line in lines if id(line) not in dropped])


@dataclass(frozen=True, eq=False)
class Line:
    """A line of the tiles; `doubtful` if it was put together, or if an end of it is missing."""

    piece: Piece
    doubtful: bool

    @classmethod
    def of(cls, cluster: Sequence[Piece]) -> Line:
        """Return the line that these pieces show, each a part of it or all."""
        whole = [piece for piece in cluster if not any(piece.cut)]
        uncut = [piece for piece in cluster if not is_cut_across(piece)] or cluster
        usable = [piece for piece in uncut if not any(piece.cut) or not any(is_seen_by(piece, one) for one in whole)]
        ordered = sorted(usable, key=lambda piece: (stretch_of(piece).start, -stretch_of(piece).end))
        text, used = stretch_of(ordered[0]), [ordered[0]]
        for piece in ordered[1:]:
            more = stretch_of(piece)
            if more.end > text.end + text.letter or text.cut_end:
                text, last = stitch(text, more), used[-1]
                used += [piece] if more.end > stretch_of(last).end else []
        first, last = used[0], used[-1]
        quad = [*first.shape[:2], *last.shape[2:6], *first.shape[6:8]]
        box = around([number for piece in used for number in piece.shape])
        piece = dataclasses.replace(first, label=text.text, shape=quad, values=least_values(used), box=box)
        return cls(piece, len(used) > 1 or text.cut_start or text.cut_end or is_cut_across(first))


def clusters(pieces: Sequence[Piece], cell: float) -> list[list[Piece]]:
    """Return the pieces of each line together."""
    cluster_of: dict[int, list[Piece]] = {}
    nearby: Nearby[Piece] = Nearby(cell)
    for piece in pieces:
        mine = [piece]
        cluster_of[id(piece)] = mine
        for other in nearby.near(piece.box):
            theirs = cluster_of[id(other)]
            if theirs is not mine and is_same_line(piece, other) and not are_distinct(mine, theirs):
                theirs.extend(mine)
                cluster_of.update((id(member), theirs) for member in mine)
                mine = theirs
        nearby.add(piece.box, piece)
    return list({id(cluster): cluster for cluster in cluster_of.values()}.values())


def is_seen_by(piece: Piece, whole: Piece) -> bool:
    """Return whether most of a cut piece is in the view of an uncut one, which therefore reads the line better."""
    return area(clip(piece.box, whole.view.box)) >= MOSTLY * area(piece.box)


def is_same_line(one: Piece, other: Piece) -> bool:
    """Return whether two views show the same line where both look."""
    seen = None if one.view is other.view or is_vertical(one) != is_vertical(other) else seen_by_both(one, other)
    if seen is None or smaller_share(*seen) < SAME_LINE:
        return False
    return is_cut_across(one) or is_cut_across(other) or are_equally_high(one, other)


def are_equally_high(one: Piece, other: Piece) -> bool:
    low, high = sorted((height(one) + 1, height(other) + 1))
    return low >= EQUAL_HEIGHT * high


def are_distinct(ones: Sequence[Piece], others: Sequence[Piece]) -> bool:
    """Return whether one answer has two lines there, one above the other."""
    for one, other in itertools.product(ones, others):
        if one.view is other.view:
            first, second = stretch_of(one), stretch_of(other)
            shared = min(first.end, second.end) - max(first.start, second.start)
            if shared > 0.5 * min(first.end - first.start, second.end - second.start):
                return True
    return False


def is_better(whole: Piece, lines: Sequence[Line]) -> bool:
    """Return whether the whole image shows large letters better than tiles that cut the line."""
    x1, y1, x2, y2 = whole.view.box
    return (
        height(whole) >= LEGIBLE * max(x2 - x1, y2 - y1)
        and any(line.doubtful for line in lines)
        and all(is_vertical(line.piece) == is_vertical(whole) and are_equally_high(line.piece, whole) for line in lines)
    )


# ---- reading order


def reading_order(lines: Sequence[Piece]) -> list[Piece]:
    """Return the lines from top to bottom, rows from left to right, and columns of prose one after the other."""
    ordered: list[Piece] = []
    for block in blocks(lines):
        for column in columns(block):
            for row in rows(column):
                ordered += row
    return ordered


def blocks(lines: Sequence[Piece]) -> list[list[Piece]]:
    """Split lines where more than one line's height is empty across the whole image."""
    gap = statistics.median(map(height, lines)) if lines else 0.0
    found: list[list[Piece]] = []
    bottom = 0.0
    for line in sorted(lines, key=lambda line: line.box[1]):
        if not found or line.box[1] > bottom + gap:
            found.append([])
        bottom = max(bottom, line.box[3]) if len(found[-1]) else line.box[3]
        found[-1].append(line)
    return found


def columns(block: Sequence[Piece]) -> list[list[Piece]]:
    """Split a block at gaps that no line crosses, if there is prose on both sides: a table is read across."""
    parts: list[list[Piece]] = []
    right = 0.0
    for line in sorted(block, key=lambda line: line.box[0]):
        if not parts or line.box[0] > right:
            parts.append([])
        right = max(right, line.box[2])
        parts[-1].append(line)
    prose = all(
        len(part) >= COLUMN_LINES and statistics.median(len(line.label) for line in part) >= COLUMN_LETTERS
        for part in parts
    )
    return parts if prose else [list(block)]


def rows(lines: Sequence[Piece]) -> list[list[Piece]]:
    """Return the lines that stand next to each other together, each row from left to right."""
    found: list[list[Piece]] = []
    for line in sorted(lines, key=lambda line: line.box[1] + line.box[3]):
        if found and overlap_in_height(found[-1][-1].box, line.box) >= 0.5:
            found[-1].append(line)
        else:
            found.append([line])
    return [sorted(row, key=lambda line: line.box[0]) for row in found]


def overlap_in_height(one: Box, other: Box) -> float:
    """Return the common part of both heights, as a fraction of the lower one."""
    shared = clip((0, one[1], 0, one[3]), (0, other[1], 0, other[3]))
    return (shared[3] - shared[1] + 1) / (min(one[3] - one[1], other[3] - other[1]) + 1) if shared else 0.0
