"""Masks of objects, as arrays and as COCO's run-length encoding (RLE), without pycocotools.

Pixels are chosen exactly as by pycocotools (`rleFrPoly` in its maskApi.c, BSD-2-Clause), which samples an outline five
times per pixel. So a mask equals what COCO tools make of the polygons in `to_coco()`. Several polygons of an object are
one mask, their union: Florence-2 writes the parts of an object, and COCO, supervision and Microsoft's examples fill
each. Where one polygon crosses or encloses itself, the parts that it goes around twice are outside (even-odd).

An interval is [start, stop) in an image's pixels, counted column by column: pixel (x, y) is x * height + y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from florence2_client.objects import Found, Point

Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"  # bool [height, width]
Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
SAMPLES = 5  # per pixel


def mask_of(found: Found, size: tuple[int, int]) -> Mask:
    """Return the mask of an object in an image of `size` (width, height)."""
    width, height = size
    runs = run_lengths(found, size)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def masks_of(objects: Sequence[Found], size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the masks of objects, bool [n, height, width]."""
    masks = np.empty((len(objects), size[1], size[0]), dtype=np.bool_)
    for index, found in enumerate(objects):
        masks[index] = mask_of(found, size)
    return masks


def rle_of(found: Found, size: tuple[int, int]) -> dict[str, Any]:
    """Return the mask of an object as COCO's compressed RLE, ready for JSON."""
    return {"size": [size[1], size[0]], "counts": compressed(run_lengths(found, size).tolist())}


def coco_mask(found: Found, size: tuple[int, int]) -> dict[str, Any]:
    """Return `segmentation` and `area` of a COCO annotation whose mask is in RLE."""
    return {"segmentation": rle_of(found, size), "area": int(run_lengths(found, size)[1::2].sum())}


def run_lengths(found: Found, size: tuple[int, int]) -> Integers:
    """Return the lengths of the runs of pixels outside, inside, outside and so on; only the first may be 0.

    A box without an outline is filled. A polygon of fewer than three points covers nothing.
    """
    x1, y1, x2, y2 = found.box
    outlines = found.polygons or [((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
    intervals = [_intervals(outline, size) for outline in outlines if len(outline) >= 3]
    edges = _union(np.concatenate(intervals)).reshape(-1) if intervals else np.empty(0, dtype=np.int64)
    runs = np.diff(edges, prepend=0, append=size[0] * size[1])
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def compressed(runs: Sequence[int]) -> str:
    """Return the text of run lengths: of each, the difference from the one before the last, five bits a character."""
    characters = bytearray()
    for index, length in enumerate(runs):
        number = length - (runs[index - 2] if index > 2 else 0)
        more = True
        while more:
            bits = number & 0x1F
            number >>= 5
            more = number != (-1 if bits & 0x10 else 0)
            characters.append(48 + bits + (0x20 if more else 0))
    return characters.decode("ascii")


def _intervals(polygon: Sequence[Point], size: tuple[int, int]) -> Integers:
    """Return the intervals [n, 2] inside a polygon, sorted, any of which may be empty."""
    width, height = size
    corners = (np.asarray(polygon, dtype=np.float64) * SAMPLES + 0.5).astype(np.int64)  # rounds towards 0, as C
    points = np.concatenate([_line(*pair) for pair in zip(corners, np.roll(corners, -1, axis=0), strict=True)])
    (u, v), (before_u, before_v) = points[1:].T, points[:-1].T
    # The column that the outline enters or leaves here, if it passes a column's middle.
    column = np.where(u < before_u, u, u - 1)
    middle = SAMPLES // 2
    crosses = (u != before_u) & (column % SAMPLES == middle) & (column >= 0) & (column // SAMPLES < width)
    row = np.clip(-((middle - np.minimum(v, before_v)) // SAMPLES), 0, height)  # rounds up
    toggles = np.sort((column // SAMPLES * height + row)[crosses])
    if len(toggles) % 2:
        toggles = np.append(toggles, width * height)
    return toggles.reshape(-1, 2)


def _line(start: Integers, end: Integers) -> Integers:
    """Return the points [n, 2] of a line in samples, one for each step along its longer side."""
    across = np.abs(end - start)
    longer = 0 if across[0] >= across[1] else 1
    flipped = start[longer] > end[longer]
    first, last = (end, start) if flipped else (start, end)
    steps = np.arange(across[longer] + 1)[:: -1 if flipped else 1]
    slope = (last - first)[1 - longer] / max(int(across[longer]), 1)
    points = np.empty((len(steps), 2), dtype=np.int64)
    points[:, longer] = steps + first[longer]
    points[:, 1 - longer] = (first[1 - longer] + slope * steps + 0.5).astype(np.int64)
    return points


def _union(intervals: Integers) -> Integers:
    """Return the intervals [n, 2] that cover the same pixels, sorted and apart from each other."""
    filled = intervals[intervals[:, 0] < intervals[:, 1]]
    filled = filled[np.argsort(filled[:, 0], kind="stable")]
    if not len(filled):
        return filled
    reach = np.maximum.accumulate(filled[:, 1])
    opens = np.append(True, filled[1:, 0] > reach[:-1])
    last = np.append(np.flatnonzero(opens)[1:] - 1, len(filled) - 1)
    return np.stack([filled[opens, 0], reach[last]], axis=1)
