"""Answers of every kind as objects, and objects as COCO and YOLO."""

from __future__ import annotations

import json

import pytest

from florence2.answers import Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2_client import Found, Result
from florence2_client.objects import Shape, found_in

SIZE = (200, 100)
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
CORNERS = ((10.0, 10.0), (30.0, 10.0), (30.0, 30.0), (10.0, 30.0))


def result(answer):
    return Result("<OD>", answer, "", "stop", 1, 0.0, SIZE)


@pytest.mark.parametrize(
    ("answer", "objects"),
    [
        (Boxes([[1, 2, 3, 4]], ["dog"], [0.5]), [Found("dog", (1, 2, 3, 4), score=0.5)]),
        (Boxes([[1, 2, 3, 4]], [""]), [Found("", (1, 2, 3, 4))]),
        (Quads([SQUARE], ["EXIT"]), [Found("EXIT", (10, 10, 30, 30), Shape.QUAD, polygons=(CORNERS,))]),
        (
            Polygons([[SQUARE, [0.0, 5.0]], []], ["", "nowhere"]),
            [Found("", (0, 5, 30, 30), Shape.POLYGON, polygons=(CORNERS, ((0.0, 5.0),)))],
        ),
        (
            BoxesAndPolygons([[1, 2, 3, 4]], ["a"], [[SQUARE]], ["b"]),
            [Found("a", (1, 2, 3, 4)), Found("b", (10, 10, 30, 30), Shape.POLYGON, polygons=(CORNERS,))],
        ),
        (TextAnswer("a dog"), []),
        (TextAnswer("car<loc_0><loc_100><loc_499><loc_999>"), [Found("car", (0.1, 10.05, 99.9, 99.95))]),
        (TextAnswer("<loc_1>" * 5), []),
    ],
)
def test_every_answer_becomes_objects(answer, objects):
    """Boxes, lines of text, outlines and regions in texts; what has no place is left out."""
    found = found_in(answer, SIZE)
    assert [(one.label, one.shape, one.score, one.polygons) for one in found] == [
        (one.label, one.shape, one.score, one.polygons) for one in objects
    ]
    assert [one.box for one in found] == [pytest.approx(one.box) for one in objects]
    assert result(answer).labels == [one.label for one in objects]


def test_coco_data_set_is_complete():
    """Boxes are x, y, width, height; outlines have their true area; ids refer to what is there."""
    answer = BoxesAndPolygons([[10, 20, 40, 60]], ["cat"], [[SQUARE, [5.0, 5.0]]], ["hat"], [0.75])
    coco = json.loads(json.dumps(result(answer).to_coco("a.jpg")))
    assert coco["images"] == [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "hat"}]
    box, outline = coco["annotations"]
    assert box == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40], "area": 1200, "segmentation": [],
        "iscrowd": 0, "score": 0.75,
    }  # fmt: skip
    assert (outline["id"], outline["category_id"], outline["area"]) == (2, 2, 400)
    assert outline["segmentation"] == [SQUARE]


def test_yolo_lines_are_fractions_of_the_image():
    """A box by its middle and size, an outline by its points; labels that are no class are left out."""
    answer = BoxesAndPolygons([[10, 20, 40, 60], [0, 0, 1, 1]], ["cat", "dog"], [[SQUARE]], ["hat"])
    assert result(answer).to_yolo(["hat", "cat"]) == [
        "1 0.125000 0.400000 0.150000 0.400000",
        "0 0.050000 0.100000 0.150000 0.100000 0.150000 0.300000 0.050000 0.300000",
    ]
