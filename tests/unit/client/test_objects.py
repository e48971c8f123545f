"""Answers of every kind as objects, and objects as COCO and YOLO."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import pytest
from PIL import Image

from florence2.answers import Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.errors import InvalidOption, InvalidRequest
from florence2.parsing import parse, pieces_from_text
from florence2.tasks import Grammar
from florence2_client import Found, Result, draw
from florence2_client.objects import Shape, coco_annotation, found_in

SIZE = (200, 100)
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
CORNERS = ((10.0, 10.0), (30.0, 10.0), (30.0, 30.0), (10.0, 30.0))


def result(answer):
    return Result("<OD>", answer, "", "stop", 1, 0.0, SIZE)


@pytest.mark.parametrize(
    ("answer", "objects"),
    [
        (Boxes([[1, 2, 3, 4]], ["dog"], [0.5], [0.9]), [Found("dog", (1, 2, 3, 4), score=0.5, confidence=0.9)]),
        (Boxes([[1, 2, 3, 4]], [""]), [Found("", (1, 2, 3, 4))]),
        (Boxes([[3, 4, 1, 2], [1, 4, 3, 2]], ["a", "b"]), [Found("a", (1, 2, 3, 4)), Found("b", (1, 2, 3, 4))]),
        (
            Quads([SQUARE], ["EXIT"], [0.9]),
            [Found("EXIT", (10, 10, 30, 30), Shape.QUAD, polygons=(CORNERS,), confidence=0.9)],
        ),
        (
            Polygons([[], [SQUARE, [0.0, 5.0]]], ["nowhere", ""], [0.1, 0.9]),
            [Found("", (0, 5, 30, 30), Shape.POLYGON, polygons=(CORNERS, ((0.0, 5.0),)), confidence=0.9)],
        ),
        (
            BoxesAndPolygons([[1, 2, 3, 4]], ["a"], [[SQUARE]], ["b"]),
            [Found("a", (1, 2, 3, 4)), Found("b", (10, 10, 30, 30), Shape.POLYGON, polygons=(CORNERS,))],
        ),
        (TextAnswer("a dog"), []),
        (TextAnswer("car<loc_0><loc_100><loc_499><loc_999>"), [Found("car", (0.1, 10.05, 99.9, 99.95))]),
        (TextAnswer("<loc_1>" * 5), []),
        (TextAnswer("car<loc_499><loc_1000><loc_0><loc_100>"), [Found("car", (0.1, 10.05, 99.9, 99.95))]),
        (
            TextAnswer("two<loc_0><loc_0><loc_9><loc_9><loc_0><loc_0><loc_9><loc_9>a point<loc_1><loc_2>one"),
            [Found("two", (0.1, 0.05, 1.9, 0.95))] * 2,
        ),
        (
            TextAnswer("hat<poly><loc_0><loc_0><loc_9><loc_0><loc_9><loc_9></poly>a<and>b<loc_0><loc_0><loc_9><loc_9>"),
            [
                Found("a", (0.1, 0.05, 1.9, 0.95)),
                Found("b", (0.1, 0.05, 1.9, 0.95)),
                Found(
                    "hat", (0.1, 0.05, 1.9, 0.95), Shape.POLYGON, polygons=(((0.1, 0.05), (1.9, 0.05), (1.9, 0.95)),)
                ),
            ],
        ),
    ],
)
def test_every_answer_becomes_objects(answer, objects):
    """Boxes, lines of text, outlines and regions in texts; what has no place is left out."""
    found = found_in(answer, SIZE)
    assert [(one.label, one.shape, one.score, one.confidence, one.polygons) for one in found] == [
        (one.label, one.shape, one.score, one.confidence, one.polygons) for one in objects
    ]
    assert [one.box for one in found] == [pytest.approx(one.box) for one in objects]
    assert result(answer).labels == [one.label for one in objects]


def test_objects_of_low_confidence_can_be_left_out():
    """From all lists of the answer, each with the confidences of its own objects; text stays as it is."""
    box, other = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]
    boxes = Boxes([box, other], ["a", "b"], [0.9, 0.1], [0.3, 0.5])
    assert result(boxes).at_least(0.5).answer == Boxes([other], ["b"], [0.1], [0.5])
    assert result(boxes).at_least(0).answer == boxes
    both = BoxesAndPolygons([box], ["a"], [[SQUARE], [SQUARE]], ["c", "d"], [0.9], [0.4], [0.6, 0.3])
    assert result(both).at_least(0.5).answer == BoxesAndPolygons([], [], [[SQUARE]], ["c"], [], [], [0.6])
    assert result(Quads([SQUARE], ["EXIT"], [0.4])).at_least(0.5).answer == Quads([], [], [])
    assert result(Polygons([[SQUARE]], [""], [0.4])).at_least(0.4).labels == [""]
    assert result(TextAnswer("a dog")).at_least(0.9).answer == TextAnswer("a dog")
    with pytest.raises(InvalidRequest, match="no confidences"):
        result(Boxes([box], ["a"], [0.9])).at_least(0.5)


@pytest.mark.parametrize("confidence", [float("nan"), -0.1, 1.5, float("inf"), "0.5", True, None])
def test_a_confidence_is_a_share(confidence):
    """NaN would leave out everything."""
    with pytest.raises(InvalidOption, match="the confidence must be a number from 0 to 1"):
        result(TextAnswer("a dog")).at_least(confidence)


def test_results_know_the_confidences_of_objects_and_of_text():
    """A text has the probability of its words, without the region that it repeats; so has the region's object."""
    both = BoxesAndPolygons([[1.0, 2.0, 3.0, 4.0]], ["a"], [[SQUARE]], ["b"], [0.9], [0.4], [0.6])
    assert result(both).confidences == [0.4, 0.6] and result(Boxes([[1, 2, 3, 4]], ["a"])).confidences == []
    tokens = [("", -9.0), ("sports", math.log(0.8)), (" car", math.log(0.5)), ("<loc_1>", -9.0), ("", -9.0)]
    text = TextAnswer("sports car<loc_1><loc_2><loc_3><loc_4>")
    region = Result("<REGION_TO_CATEGORY>", text, "", "stop", 1, 0.0, SIZE, "1,2,3,4", token_log_probs=tokens)
    assert region.confidences == pytest.approx([0.4])
    assert [found.confidence for found in region.objects] == region.confidences
    assert region.to_coco()["annotations"][0]["score"] == pytest.approx(0.4)
    assert (
        dataclasses.replace(region, token_log_probs=[]).confidences == []
        and len(dataclasses.replace(region, token_log_probs=[]).objects) == 1
    )
    assert dataclasses.replace(region, task="<CAPTION>").confidences == pytest.approx([0.4])
    assert dataclasses.replace(region, task="<CAPTION>").objects[0].confidence is None


def test_coco_data_set_is_complete():
    """Boxes are x, y, width, height; outlines have their true area; ids refer to what is there."""
    answer = BoxesAndPolygons([[10, 20, 40, 60]], ["cat"], [[SQUARE, [5.0, 5.0]]], ["hat"], [0.1], [0.75], [0.5])
    coco = json.loads(json.dumps(result(answer).to_coco("a.jpg")))
    assert coco["images"] == [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "hat"}]
    box, outline = coco["annotations"]
    assert box == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40], "area": 1200, "segmentation": [],
        "iscrowd": 0, "score": 0.75,
    }  # fmt: skip
    assert (outline["id"], outline["category_id"], outline["area"]) == (2, 2, 400)
    assert outline["segmentation"] == [SQUARE] and outline["score"] == 0.5


def test_yolo_lines_are_fractions_of_the_image():
    """A box by its middle and size, an outline by its points; labels that are no class are left out."""
    answer = BoxesAndPolygons([[10, 20, 40, 60], [0, 0, 1, 1]], ["cat", "dog"], [[SQUARE]], ["hat"])
    assert result(answer).to_yolo(["hat", "cat"]) == [
        "1 0.125000 0.400000 0.150000 0.400000",
        "0 0.050000 0.100000 0.150000 0.100000 0.150000 0.300000 0.050000 0.300000",
    ]


def test_reversed_corners_have_a_positive_size():
    """Models name the corners of a box in any order; tools reject or drop boxes of a negative size."""
    reversed_box, box = Boxes([[150.5, 90.5, 100.5, 50.25]], ["cat"]), Boxes([[100.5, 50.25, 150.5, 90.5]], ["cat"])
    assert result(reversed_box).to_coco() == result(box).to_coco()
    assert result(box).to_coco()["annotations"][0]["bbox"] == [100.5, 50.25, 50.0, 40.25]
    assert result(reversed_box).to_yolo(["cat"]) == result(box).to_yolo(["cat"])
    assert draw(Image.new("RGB", SIZE), reversed_box).tobytes() == draw(Image.new("RGB", SIZE), box).tobytes()
    assert result(reversed_box).to_dict()["answer"]["bboxes"] == reversed_box.bboxes  # as generated


@pytest.mark.parametrize("size", [(640, 480), (3, 7), (4032, 3024)])
def test_coco_numbers_are_free_of_float_noise(size):
    """Differences such as 512.16 - 183.456 are written as 328.704."""
    answer = parse(Grammar.LABELED_BOXES, pieces_from_text("a<loc_286><loc_333><loc_799><loc_998>"), size, ())
    outline = parse(Grammar.POLYGONS, pieces_from_text("<poly><loc_286><loc_333><loc_799><loc_998></poly>"), size, ())
    coco = [coco_annotation(found_in(one, size)[0], 1, 1, size) for one in (answer, outline)]
    exact = [Fraction(2 * n + 1, 2000) * extent for n, extent in zip((286, 333, 799, 998), size * 2, strict=True)]
    assert coco[0]["bbox"] == [float(n) for n in (*exact[:2], exact[2] - exact[0], exact[3] - exact[1])]
    assert all(len(str(n).partition(".")[2]) <= 4 for one in coco for n in [*one["bbox"], one["area"]])


def test_the_phrase_is_the_category_of_what_it_refers_to():
    """Segmentation by a phrase has no labels of its own; transformers' shape of the answer stays."""
    segmentation = Result(
        "<REFERRING_EXPRESSION_SEGMENTATION>", Polygons([[SQUARE]], [""]), "", "stop", 1, 0.0, SIZE, "a hat"
    )
    assert segmentation.labels == ["a hat"]
    assert segmentation.to_coco()["categories"] == [{"id": 1, "name": "a hat"}]
    assert len(segmentation.to_yolo(["a hat"])) == 1
    assert segmentation.to_dict()["answer"]["labels"] == [""]
    assert Result.from_dict(json.loads(json.dumps(segmentation.to_dict()))) == segmentation
    region = dataclasses.replace(segmentation, task="<REGION_TO_SEGMENTATION>", prompt_text="1,2,3,4")
    assert region.labels == [""]


CUSTOM = "cat<loc_0><loc_0><loc_499><loc_999>dog<loc_500><loc_0><loc_1000><loc_999>"


def test_answers_to_prompts_of_fine_tunes_are_parsed_too():
    """The answer stays the text; what it locates is in `objects`, in the JSON and in every format."""
    custom = Result("<MY_TASK>", TextAnswer(CUSTOM), CUSTOM, "stop", 1, 0.0, SIZE)
    assert custom.labels == ["cat", "dog"]
    assert [one["bbox"] for one in custom.to_coco()["annotations"]] == [
        [0.1, 0.05, 99.8, 99.9],
        [100.1, 0.05, 99.8, 99.9],
    ]
    values = json.loads(json.dumps(custom.to_dict()))
    assert values["answer"] == CUSTOM
    assert list(values["parsed"]) == ["bboxes", "bboxes_labels", "polygons", "polygons_labels"]
    assert values["parsed"]["bboxes_labels"] == ["cat", "dog"]
    assert Result.from_dict(values) == custom
    assert "parsed" not in Result("<MY_TASK>", TextAnswer("a cat"), "a cat", "stop", 1, 0.0, SIZE).to_dict()


@pytest.mark.parametrize("form", ["text", "boxes", "quads", "polygons", "boxes_or_polygons"])
def test_the_form_of_an_answer_may_be_named(form):
    """What eight locations are depends on the fine-tune: two boxes, or a line of text; results of any form survive."""
    text = "EXIT" + "".join(f"<loc_{n}>" for n in (10, 10, 90, 10, 90, 90, 10, 90))
    custom = Result("<MY_TASK>", TextAnswer(text), text, "stop", 1, 0.0, (1000, 1000)).read_as(form)
    shapes = {"quads": [Shape.QUAD], "polygons": [Shape.POLYGON]}.get(form, [Shape.BOX] * 2)
    assert [found.shape for found in custom.objects] == shapes
    assert Result.from_dict(json.loads(json.dumps(custom.to_dict()))).objects == custom.objects


def test_an_unknown_form_is_refused():
    """With the forms that exist."""
    with pytest.raises(InvalidOption, match="there is no form 'box'; the forms are text, boxes, quads, "):
        result(TextAnswer("")).read_as("box")
