"""Convert pixels to location bins and back: the model names a coordinate by one of 1000 equal bins along a side.

x is measured along the width and y along the height. `prompts` converts regions, and `parsing` boxes. The formulas are
those of transformers' `Florence2PostProcessor`, but in double precision and without truncation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from florence2.config import LOCATION_BINS

NEAR = 30  # bins on each side of a location that count as the same place in confidences (docs/adr/0020)
LOCATION_TOKEN = "<loc_-?[0-9]+>"  # a pattern; only text can name a bin outside of 0 to 999


def location_of(token: str) -> int:
    """Return the bin that a LOCATION_TOKEN names, or else the nearest one: 999 for `<loc_1000>`, 0 for `<loc_-1>`."""
    digits = token[len("<loc_") : -1].lstrip("0")
    return 0 if digits[:1] in ("", "-") else min(int(digits[:4]), LOCATION_BINS - 1)


def to_bin(pixel: float, extent: int) -> int:
    """Return the bin of a coordinate along a side of `extent` pixels; outside of the image, the nearest bin."""
    inside = min(max(pixel, 0.0), float(extent))
    return min(math.floor(inside * LOCATION_BINS / extent), LOCATION_BINS - 1)


def to_pixel(location: int, extent: int) -> float:
    """Return the middle of a bin in pixels."""
    return (location + 0.5) * extent / LOCATION_BINS


def region_tokens(box: Sequence[float], size: tuple[int, int]) -> str:
    """Return `<loc_x1><loc_y1><loc_x2><loc_y2>` for a box (x1, y1, x2, y2) in pixels; `size` is (width, height)."""
    x1, y1, x2, y2 = box
    width, height = size
    bins = to_bin(x1, width), to_bin(y1, height), to_bin(x2, width), to_bin(y2, height)
    return "".join(f"<loc_{location}>" for location in bins)
