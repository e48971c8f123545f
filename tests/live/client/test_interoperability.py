"""The server's answers in other people's tools: supervision reads every task it knows, and agrees with ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from florence2.tasks import TASKS
from florence2_client import Client, Result
from florence2_client.objects import Shape, supervision_detections

DEMO = Path(__file__).parents[3] / "demo" / "images"
QUESTIONS = json.loads((DEMO / "scene.json").read_text())["tasks"]
supervision = pytest.importorskip("supervision", reason="supervision is not installed")
ACCEPTED = supervision.detection.vlm.SUPPORTED_TASKS_FLORENCE_2


@pytest.fixture(scope="module")
def answers(server):
    """task -> the server's answer about the demo's image."""
    with Client(server.grpc_url) as client:
        replies = client.run_many((DEMO / "scene.png", task, QUESTIONS[task]["input"]) for task in ACCEPTED)
        return {reply.question.task: reply.unwrap() for reply in replies}


@pytest.mark.parametrize("task", ACCEPTED)
def test_supervision_reads_the_servers_json(answers, task):
    """RESULT goes into `Detections.from_vlm` as it is, and what it reads is what `to_supervision` gives."""
    result = answers[task]
    theirs = supervision.Detections.from_vlm(
        supervision.VLM.FLORENCE_2, {task: result.answer.to_json()}, resolution_wh=result.image_size
    )
    ours = result.to_supervision()
    assert len(theirs) == len(ours) == len(result.objects) > 0
    # Of a region in a text, supervision takes the corner of its location bins, and we the middle.
    assert np.allclose(theirs.xyxy, ours.xyxy, atol=1.0)
    if "class_name" in theirs.data and any(theirs.data["class_name"]):
        assert theirs.data["class_name"].tolist() == ours.data["class_name"].tolist()
    if theirs.mask is not None:
        overlap = (theirs.mask & ours.mask).sum() / (theirs.mask | ours.mask).sum()
        assert ours.mask.shape == theirs.mask.shape and overlap > 0.98  # edges are rasterised differently
    assert ("xyxyxyxy" in theirs.data) == ("xyxyxyxy" in ours.data)
    if "xyxyxyxy" in theirs.data:
        assert np.array_equal(theirs.data["xyxyxyxy"], ours.data["xyxyxyxy"])


@pytest.mark.parametrize("token", ["<OD>", "<OCR_WITH_REGION>", "<REFERRING_EXPRESSION_SEGMENTATION>"])
def test_supervision_gets_confidences_too(answers, token):
    """`from_vlm` has none; thresholds need them."""
    result = answers[token]
    assert result.to_supervision().confidence.tolist() == pytest.approx(result.answer.confidences)


def test_outlines_of_open_vocabulary_detection_are_kept():
    """`from_vlm` drops them; a box next to them gets a mask that fills it."""
    answer = {
        "bboxes": [[1, 1, 4, 4]], "bboxes_labels": ["cat"],
        "polygons": [[[10, 10, 20, 10, 20, 20]]], "polygons_labels": ["hat"],
    }  # fmt: skip
    values = {"text": "", "finish_reason": "stop", "num_tokens": 1, "score": 0.0, "image_size": [30, 30]}
    result = Result.from_dict({"task": "<OPEN_VOCABULARY_DETECTION>", "answer": answer} | values)
    assert [found.shape for found in result.objects] == [Shape.BOX, Shape.POLYGON]
    detections = result.to_supervision()
    assert detections.data["class_name"].tolist() == ["cat", "hat"]
    assert detections.mask[0, 2, 2] and detections.mask[1, 12, 18] and not detections.mask[1, 18, 12]


def test_reversed_corners_are_detections():
    """supervision rejects boxes of a negative size; the mask of a box fills it."""
    answer = {"bboxes": [[20.5, 15.5, 10.5, 5.5]], "bboxes_labels": ["cat"], "polygons": [[[1, 1, 3, 1, 3, 3]]]}
    values = {"text": "", "finish_reason": "stop", "num_tokens": 1, "score": 0.0, "image_size": [30, 30]}
    values |= {"task": "<OPEN_VOCABULARY_DETECTION>", "answer": answer | {"polygons_labels": ["hat"]}}
    detections = Result.from_dict(values).to_supervision()
    assert detections.xyxy[0].tolist() == [10.5, 5.5, 20.5, 15.5]
    assert detections.mask[0, 10, 15] and not detections.mask[0, 20, 15]


def test_answers_without_a_place_have_no_detections():
    """A caption is an empty set of detections, not an error."""
    assert len(supervision_detections([], (10, 10))) == 0
    assert set(ACCEPTED) <= set(TASKS)


def test_missing_supervision_is_one_sentence(monkeypatch):
    """Who has not installed it is told how."""
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        supervision_detections([], (10, 10))
