"""Where the tiles of an image lie."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2_client import Tiles
from florence2_client.tiling import MOST_AUTO, tile_boxes
from tests import reference  # noqa: F401  the profile of hypothesis

SIZES = st.tuples(st.integers(1, 6000), st.integers(1, 6000))
TILINGS = st.one_of(
    st.just("auto"),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(100, 3000),
    st.builds(Tiles, st.integers(150, 2000), st.floats(0, 0.6)),
)


@given(SIZES, TILINGS, st.sampled_from([1, 8, 64, 192, 768, 1024]))
def test_tiles_cover_every_pixel_and_overlap(size, tiles, model_side):
    """In each direction they follow each other, share what they should, and end with the image."""
    boxes = tile_boxes(size, tiles, model_side) or [(0, 0, *size)]
    overlap = tiles.overlap if isinstance(tiles, Tiles) else 0.2
    for axis in (0, 1):
        spans = sorted({(box[axis], box[axis + 2]) for box in boxes})
        assert spans[0][0] == 0 and spans[-1][1] == size[axis]
        lengths = {end - start for start, end in spans}
        assert len(lengths) == 1
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start >= overlap * min(lengths) - 2  # rounding moves both edges
    columns, rows = (len({box[axis] for box in boxes}) for axis in (0, 1))
    assert len(boxes) == columns * rows == len(set(boxes))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((1152, 1152), 0),
        ((1153, 300), 2),
        ((1920, 1080), 6),
        ((3840, 2160), 24),
        ((2480, 3508), 24),
        ((600, 30_000), 45),
    ],
)
def test_auto_shows_the_model_each_pixel_while_the_tiles_are_not_too_many(size, count):
    """Beyond that, tiles are larger."""
    boxes = tile_boxes(size, "auto")
    assert len(boxes) == count <= MOST_AUTO
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
    assert not sides or max(sides) <= 768 * (1.1 if max(size) < 10_000 else 1.3)
