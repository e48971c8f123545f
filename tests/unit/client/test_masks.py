"""Masks of answers of every kind, against pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence2.answers import Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2_client import Found, Result, Results
from florence2_client.masks import mask_of, rle_of
from florence2_client.objects import Shape

coco_masks = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")

SIZE = (200, 100)
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
TRIANGLE = [50.0, 50.0, 90.0, 50.0, 90.0, 90.0]


def result(answer, size=SIZE, text=None):
    return Result("<REFERRING_EXPRESSION_SEGMENTATION>", answer, "", "stop", 1, 0.0, size, text)


def theirs(polygons, size):
    """The mask that pycocotools makes of flat polygons, all of one object."""
    rle = coco_masks.merge(coco_masks.frPyObjects(polygons, size[1], size[0]))
    return coco_masks.decode(rle).astype(bool)


def encoded(mask):
    return coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


coordinates = st.one_of(st.integers(-20, 60), st.floats(-20, 60, width=32), st.sampled_from([0.5, 39.5, 39.98, 40.0]))
outlines = st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(outlines, st.tuples(st.integers(1, 45), st.integers(1, 45)))
@example([[(0, 0), (40, 40), (40, 0), (0, 40)]], (40, 40))  # crosses itself
@example([[(0, 0), (40, 0), (40, 40), (0, 40)], [(10, 10), (30, 10), (30, 30), (10, 30)]], (40, 40))  # one in another
@example([[(5, 5), (5, 5), (20, 5), (20, 20), (20, 20)]], (40, 40))  # points repeat
@example([[(5, 5), (9, 9), (20, 20)]], (40, 40))  # a line
@example([[(-20, -20), (60, -20), (60, 60), (-20, 60)]], (40, 40))  # all of the image
@example([[(50, 50), (60, 50), (60, 60)]], (40, 40))  # none of it
def test_masks_and_their_encoding_are_pycocotools_own(polygons, size):
    """Pixel by pixel and character by character: outside of the image, self-crossing, overlapping, tiny."""
    found = Found("", (0, 0, 1, 1), Shape.POLYGON, polygons=tuple(map(tuple, polygons)))
    mask = mask_of(found, size)
    assert np.array_equal(mask, theirs([[float(n) for point in polygon for n in point] for polygon in polygons], size))
    assert rle_of(found, size) == {"size": [size[1], size[0]], "counts": encoded(mask)}


@pytest.mark.parametrize(
    ("answer", "areas"),
    [
        (Polygons([[SQUARE], [TRIANGLE]], ["", ""]), [400, 800]),
        (Polygons([[SQUARE, TRIANGLE]], [""]), [1200]),  # two parts of one object
        (Polygons([[SQUARE, SQUARE]], [""]), [400]),  # a union, as in COCO
        (
            Polygons([[SQUARE, [1.0, 1.0, 5.0, 5.0]], [[1.0, 1.0, 5.0, 5.0]], []], ["", "", ""]),
            [400, 0],
        ),  # too few points
        (Quads([SQUARE, [0.0, 0.0, 200.0, 0.0, 200.0, 100.0, 0.0, 100.0]], ["EXIT", "ALL"]), [400, 20_000]),
        (Boxes([[10, 20, 40, 60], [40, 60, 10, 20], [-5, -5, 300, 300]], ["a", "b", "c"]), [1200, 1200, 20_000]),
        (BoxesAndPolygons([[10, 20, 40, 60]], ["a"], [[SQUARE]], ["b"]), [1200, 400]),
        (TextAnswer("car<loc_0><loc_0><loc_999><loc_999>"), [200 * 100]),
        (TextAnswer("a dog"), []),
        (Boxes([], []), []),
        (Polygons([[]], [""]), []),
    ],
)
def test_every_object_has_one_mask(answer, areas):
    """In the order of the labels, in the image's size, all in four forms that agree."""
    one = result(answer)
    masks = one.to_masks()
    assert masks.dtype == np.bool_ and masks.shape == (len(one.labels), 100, 200) == (len(areas), 100, 200)
    assert masks.sum(axis=(1, 2)).tolist() == pytest.approx(areas, rel=0.03)
    assert all(np.array_equal(mask, other) for mask, other in zip(masks, one.iter_masks(), strict=True))
    assert [rle["counts"] for rle in one.to_rle()] == [encoded(mask) for mask in masks]
    assert Results([one]).to_rle() == one.to_rle()
    pytest.importorskip("supervision", reason="supervision is not installed")
    if any(found.shape is Shape.POLYGON for found in one.objects):
        assert np.array_equal(one.to_supervision().mask, masks)


def test_coco_tools_read_the_masks(tmp_path):
    """With and without RLE pycocotools reads the same pixels; the area is theirs."""
    one = result(BoxesAndPolygons([[10, 20, 40, 60]], ["a"], [[SQUARE, TRIANGLE]], ["b"]))
    coco = pytest.importorskip("pycocotools.coco")
    read = []
    for rle in (False, True):
        path = tmp_path / f"{rle}.json"
        path.write_text(json.dumps(one.to_coco("a.jpg", rle=rle)))
        read.append(coco.COCO(path))
    box, outline = read[1].loadAnns([1, 2])
    assert (box["area"], outline["area"]) == (1200, int(coco_masks.area(outline["segmentation"])))
    assert np.array_equal(read[0].annToMask(read[0].anns[2]), read[1].annToMask(outline))
    assert np.array_equal(read[1].annToMask(outline).astype(bool), one.to_masks()[1])


def test_a_large_image_needs_little_memory_for_rle():
    """A hundred megapixels; the masks themselves would take 100 MB each."""
    star = [
        n for angle in np.linspace(0, 6.28, 200) for n in (5000 + 4900 * np.cos(angle), 5000 + 4900 * np.sin(angle))
    ]
    one = result(Polygons([[star]] * 20, [""] * 20), (10_000, 10_000))
    rles = one.to_rle()
    assert len(rles) == 20 and coco_masks.area(rles[0]) == pytest.approx(np.pi * 4900**2, rel=1e-3)
