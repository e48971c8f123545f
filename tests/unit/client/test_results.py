"""The results of several requests as one."""

from __future__ import annotations

import pytest

from florence2.answers import Boxes, Polygons, Quads, TextAnswer
from florence2.errors import InvalidRequest
from florence2_client import Result, Results
from florence2_client.objects import Shape

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


def test_results_of_all_kinds_are_merged():
    """Boxes, quads, outlines and regions become labeled boxes and outlines; scores stay if all boxes have one."""

    def result(task, answer, text=None):
        return Result(task, answer, "", "stop", 1, -1.0, (200, 100), text)

    region = TextAnswer("car<loc_0><loc_0><loc_499><loc_999>")
    results = Results(
        [
            result("<CAPTION>", TextAnswer("a dog")),
            result("<OD>", Boxes([[3.0, 4.0, 1.0, 2.0]], ["dog"], [0.5])),
            result("<OCR_WITH_REGION>", Quads([SQUARE], ["EXIT"])),
            result("<REFERRING_EXPRESSION_SEGMENTATION>", Polygons([[SQUARE, SQUARE]], [""]), "a hat"),
            result("<CAPTION_TO_PHRASE_GROUNDING>", Boxes([[1.0, 2.0, 3.0, 4.0]], ["dog"], [0.5]), "a dog and a cat"),
        ]
    )
    answer = results.merged().answer
    assert answer.bboxes == [[1, 2, 3, 4]] * 2 and answer.bboxes_labels == ["dog", "dog"] and answer.scores == [0.5] * 2
    assert answer.polygons == [[SQUARE], [SQUARE, SQUARE]] and answer.polygons_labels == ["EXIT", "a hat"]
    assert results.merged().num_tokens == 5 and results.merged().score == -1.0
    results.append(result("<REGION_TO_CATEGORY>", region, "1,2,3,4"))
    assert results.merged().answer.scores is None
    assert results.labels == ["dog", "EXIT", "a hat", "dog", "car"]
    assert {found.shape for found in results.objects} == {Shape.BOX, Shape.QUAD, Shape.POLYGON}


def test_results_without_a_common_image_are_not_converted():
    one = Result("<OD>", Boxes([], []), "", "stop", 1, 0.0, (200, 100))
    other = Result("<OD>", Boxes([], []), "", "stop", 1, 0.0, (100, 100))
    for results in (Results([one, other]), Results()):
        with pytest.raises(InvalidRequest):
            results.to_coco()
    assert Results().objects == [] and Results([one]).merged().objects == []
