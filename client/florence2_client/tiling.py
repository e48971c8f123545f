"""Cut an image into overlapping tiles: what users may ask for, and the boxes that come of it."""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from florence2.errors import InvalidOption

MODEL_SIDE = 768  # pixels that the published checkpoints see
WHOLE_IS_ENOUGH = 1.5  # "auto" makes no tiles of images whose sides are at most this many times what the model sees
OVERLAP = 0.2  # of a tile's side
MOST_AUTO = 48  # tiles that "auto" makes; of a larger image it makes larger tiles
MOST_TILES = 4096


@dataclass(frozen=True)
class Tiles:
    """Square tiles of a size in pixels. Neighbors share `overlap`, a fraction of that size, or a little more.

    What is smaller than the overlap is whole in at least one tile.

    >>> client.detect("scene.png", tiles=Tiles(768, overlap=0.4)).labels
    ['star', 'triangle']
    """

    size: int
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        if not _is_count(self.size):
            raise InvalidOption(f"the size of tiles must be a whole number of pixels, not {reprlib.repr(self.size)}")
        if not (isinstance(self.overlap, (int, float)) and 0 <= self.overlap <= 0.9):
            raise InvalidOption(f"the overlap of tiles must be between 0 and 0.9, not {reprlib.repr(self.overlap)}")


# "auto", the size of a tile in pixels, (columns, rows), or Tiles; in text "auto", "640" or "4x3".
Tiling: TypeAlias = "Literal['auto'] | str | int | tuple[int, int] | Tiles"


def parse_tiles(tiles: Any) -> Literal["auto"] | tuple[int, int] | Tiles:
    """Return the tiles that are meant. Raise InvalidOption if `tiles` has none of the forms."""
    if isinstance(tiles, Tiles) or tiles == "auto":
        return tiles
    given = tiles
    if isinstance(tiles, str) and re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})?", tiles):
        numbers = [int(number) for number in tiles.split("x")]
        tiles = numbers[0] if len(numbers) == 1 else numbers
    if _is_count(tiles):
        return Tiles(int(tiles))
    if isinstance(tiles, (tuple, list)) and len(tiles) == 2 and all(map(_is_count, tiles)):
        return int(tiles[0]), int(tiles[1])
    forms = "'auto', the size of a tile in pixels such as 640, or columns and rows such as 4x3"
    raise InvalidOption(f"tiles must be {forms}, not {reprlib.repr(given)}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def tile_boxes(size: tuple[int, int], tiles: Any, model_side: int = MODEL_SIDE) -> list[tuple[int, int, int, int]]:
    """Return the tiles of an image of `size` (width, height) as x1, y1, x2, y2, row by row.

    They cover every pixel. "auto" makes them `model_side` pixels large, which is what the model sees. The list is empty
    if the whole image is enough. Raise InvalidOption if there are too many.
    """
    tiles = parse_tiles(tiles)
    if tiles == "auto":
        if max(size) <= model_side * WHOLE_IS_ENOUGH:
            return []
        tiles = Tiles(model_side)
        while math.prod(_count(side, tiles) for side in size) > MOST_AUTO:
            tiles = Tiles(tiles.size + max(1, model_side // 12))
    if isinstance(tiles, Tiles):
        counts = tuple(_count(side, tiles) for side in size)
        lengths = tuple(min(tiles.size, side) for side in size)
    else:
        counts = tuple(map(min, tiles, size))
        lengths = tuple(
            min(side, math.ceil(side / (count - (count - 1) * OVERLAP)))
            for side, count in zip(size, counts, strict=True)
        )
    if math.prod(counts) > MOST_TILES:
        raise InvalidOption(f"tiles would be {math.prod(counts):,}; at most {MOST_TILES:,} are sent for an image")
    columns, rows = (
        dict.fromkeys(round(number * (side - length) / max(1, count - 1)) for number in range(count))
        for side, length, count in zip(size, lengths, counts, strict=True)
    )
    boxes = [(x, y, x + lengths[0], y + lengths[1]) for y in rows for x in columns]
    return boxes if len(boxes) > 1 else []


def _count(side: int, tiles: Tiles) -> int:
    """Return how many tiles it takes to cover a side."""
    shared = tiles.size * tiles.overlap
    return max(1, math.ceil((side - shared) / (tiles.size - shared)))
