"""The result that a client makes of a server's answer."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from florence2.answers import Boxes, Polygons, TextAnswer
from florence2.errors import InternalError
from florence2_client import Client, Result
from tests.unit.client.fake_transport import FakeTransport, outputs, png


def test_answer_is_typed_and_frozen():
    """The result holds every output of the ensemble as a plain Python value and cannot be changed."""
    result = Client(transport=FakeTransport()).run(png(), "od")
    assert result == Result(
        task="<OD>",
        answer=Boxes([[1.0, 2.0, 3.5, 4.0]], ["café"], [0.5]),
        text="café<loc_1>",
        finish_reason="stop",
        num_tokens=7,
        score=-0.25,
        image_size=(640, 480),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.task = "<OCR>"


def test_result_becomes_json():
    """`to_dict` survives a round trip through JSON and keeps transformers' shape of the answer."""
    result = Client(transport=FakeTransport()).run(png(), "od")
    assert json.loads(json.dumps(result.to_dict())) == {
        "task": "<OD>",
        "answer": {"bboxes": [[1.0, 2.0, 3.5, 4.0]], "labels": ["café"], "scores": [0.5]},
        "text": "café<loc_1>",
        "finish_reason": "stop",
        "num_tokens": 7,
        "score": -0.25,
        "image_size": [640, 480],
    }


def test_result_survives_json():
    """A result written as JSON and read again is the same result."""
    result = Client(transport=FakeTransport()).run(png(), "od")
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    with pytest.raises(InternalError):
        Result.from_dict({"task": "<OD>", "answer": "text"})


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        ("<CAPTION>", "a dog", TextAnswer("a dog")),
        ("<DocVQA>", "42", TextAnswer("42")),
        (
            "<REGION_TO_SEGMENTATION>",
            {"polygons": [[[1.0, 2.0, 3.0, 4.0]]], "labels": [""]},
            Polygons([[[1.0, 2.0, 3.0, 4.0]]], [""]),
        ),
    ],
)
def test_answer_has_the_kind_of_its_task(task, answer, expected):
    """The key of the server's JSON says how its value is to be read; prompts that are no task are text."""
    assert Client(transport=FakeTransport(outputs(task, answer))).run(png(), task).answer == expected


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        ("<OD>", {"bboxes": [[10, 20, 30, 40]], "labels": ["a"]}, {"bboxes": [[20, 60, 60, 120]], "labels": ["a"]}),
        (
            "<REGION_TO_SEGMENTATION>",
            {"polygons": [[[1, 1, 2, 2, 3, 3]]], "labels": [""]},
            {"polygons": [[[2, 3, 4, 6, 6, 9]]], "labels": [""]},
        ),
        (
            "<OCR_WITH_REGION>",
            {"quad_boxes": [[1, 1, 2, 1, 2, 2, 1, 2]], "labels": ["x"]},
            {"quad_boxes": [[2, 3, 4, 3, 4, 6, 2, 6]], "labels": ["x"]},
        ),
        ("<REGION_TO_CATEGORY>", "car<loc_1><loc_2><loc_3><loc_4>", "car<loc_1><loc_2><loc_3><loc_4>"),
    ],
)
def test_answer_about_a_smaller_image_is_in_the_originals_pixels(task, answer, expected):
    """The server saw 100 x 100; coordinates and size come back for the 200 x 300 of the original."""
    transport = FakeTransport(outputs(task, answer, IMAGE_SIZE=np.array([100, 100], dtype=np.int32)))
    result = Client(transport=transport).run(png((200, 300)), task, max_side=100)
    assert result.answer.to_json() == expected
    assert result.image_size == (200, 300)


@pytest.mark.parametrize(
    "answer",
    [
        outputs(RESULT=np.array([b"not json"], dtype=object)),
        outputs(RESULT=np.array([b"[1]"], dtype=object)),
        outputs(RESULT=np.array([b'{"<OD>": {"boxes": []}}'], dtype=object)),
        outputs(RESULT=np.array([b'{"<OD>": "a dog"}'], dtype=object)),
        outputs(IMAGE_SIZE=None),
        {"TOKENS": np.array([1], dtype=np.int32)},
    ],
)
def test_foreign_answer_is_an_internal_error(answer):
    """Whatever a wrong model answers, the error is one of ours."""
    with pytest.raises(InternalError):
        Client(transport=FakeTransport(answer)).run(png(), "od")
