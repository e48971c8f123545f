"""X-AnyLabeling's remote protocol, by the published schema of its server (app/schemas of X-AnyLabeling-Server)."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from florence2.errors import QueueFull
from florence2.tasks import TASKS

MARK = {"type": "rectangle", "label": 1, "data": [0, 0, 9, 9]}


class PublishedShape(BaseModel):
    """What X-AnyLabeling-Server says of a shape; its client adds the points to a shape of this type."""

    model_config = ConfigDict(extra="forbid")

    label: str
    shape_type: Literal["polygon", "rectangle", "rotation", "point", "line", "circle", "linestrip"]
    points: list[list[float]]
    score: float | None = Field(None, ge=0.0, le=1.0)
    attributes: dict[str, Any]
    description: str | None = None
    difficult: bool = False
    direction: float = Field(0, ge=0.0, le=2 * math.pi)
    flags: dict[str, Any] | None = None
    group_id: int | None = Field(None, gt=0)
    kie_linking: list[Any]


class PublishedResponse(BaseModel):
    """The data of a response."""

    model_config = ConfigDict(extra="forbid")

    shapes: list[PublishedShape]
    description: str
    replace: bool | None = None


@pytest.fixture
def predict(open_gateway, image_url):
    client = open_gateway()

    def send(params, status=200, **changed):
        body = {"model": "florence2", "image": image_url, "params": params, **changed}
        answer = client.post("/x-anylabeling/v1/predict", json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["success"] == (status == 200)
        return answer.json()["data"] if status == 200 else answer.json()["error"]

    return send


def test_models_have_the_tasks_and_the_widgets_that_they_need(open_gateway):
    client = open_gateway(models=("florence2_ensemble", "large_ensemble"))
    models = client.get("/x-anylabeling/v1/models").json()["data"]
    assert list(models) == ["florence2", "large"]
    tasks = {task["id"]: task for task in models["large"]["available_tasks"]}
    assert set(tasks) == {task.name for task in TASKS.values()} and next(iter(tasks)) == "od"
    assert "button_run" in tasks["caption"]["active_widgets"]
    assert {"edit_text", "button_send", "edit_conf"} <= set(tasks["open_vocabulary_detection"]["active_widgets"])
    assert {"add_pos_rect", "button_run_rect"} <= set(tasks["region_to_segmentation"]["active_widgets"])
    modes = [tasks[name]["batch_processing_mode"] for name in ("od", "open_vocabulary_detection", "region_to_ocr")]
    assert modes == ["default", "text_prompt", None]
    info = client.get("/x-anylabeling/v1/models/large/info").json()["data"]
    assert info == {"model_id": "large", **models["large"]}
    missing = client.get("/x-anylabeling/v1/models/gpt/info")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "MODEL_NOT_FOUND"
    health = client.get("/x-anylabeling/health").json()
    assert health["status"] == "healthy" and health["models_loaded"] == 2 and health["timestamp"].endswith("Z")


def test_boxes_are_rectangles_of_four_corners(predict, model):
    answer = {"bboxes": [[20, 10, 60, 40], [0, 0, 9, 9]], "labels": ["star", "car"], "confidences": [0.9, 0.2]}
    model.answers = {"<OD>": answer}
    data = predict({"current_task": "od", "conf_threshold": 0.5, "iou_threshold": 0.0, "num_beams": 1})
    [shape] = PublishedResponse.model_validate(data).shapes
    assert (shape.label, shape.shape_type, shape.score) == ("star", "rectangle", 0.9)
    assert shape.points == [[20, 10], [60, 10], [60, 40], [20, 40]] and data["description"] == ""
    assert [each["label"] for each in predict({})["shapes"]] == ["star", "car"]  # detection is the default
    assert [each["label"] for each in predict({"filter_classes": ["car"]})["shapes"]] == ["car"]
    assert len(predict({"filter_classes": []})["shapes"]) == 2


def test_captions_are_the_description(predict, model):
    model.answers = {"<MORE_DETAILED_CAPTION>": "a star"}
    assert predict({"current_task": "more_detailed_caption"}) == {"shapes": [], "description": "a star"}


def test_lines_of_text_are_described_by_their_words(predict, model):
    model.answers = {
        "<OCR_WITH_REGION>": {"quad_boxes": [[0, 0, 9, 1, 9, 5, 0, 4]], "labels": ["HI"], "confidences": [0.7]}
    }
    [shape] = PublishedResponse.model_validate(predict({"current_task": "ocr_with_region"})).shapes
    assert (shape.label, shape.description, shape.shape_type) == ("text", "HI", "polygon")
    assert shape.points == [[0, 0], [9, 1], [9, 5], [0, 4]]


def test_each_phrase_of_a_prompt_is_looked_for(predict, model):
    outline = {"polygons": [[[0, 0, 9, 0, 9, 9]]], "labels": [""]}
    model.answers = {"<REFERRING_EXPRESSION_SEGMENTATION>": outline}
    data = predict({"current_task": "referring_expression_segmentation", "text_prompt": "a star, a red car."})
    assert [each.label for each in PublishedResponse.model_validate(data).shapes] == ["a star", "a red car"]
    model.answers = {"<CAPTION_TO_PHRASE_GROUNDING>": {"bboxes": [], "labels": []}}
    predict({"current_task": "caption_to_phrase_grounding", "text_prompt": "a star, and a car"})
    assert model.asked[-1][1] == "a star, and a car"


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        ("region_to_category", "car<loc_100><loc_100><loc_299><loc_399>", ("car", "rectangle", None)),
        ("region_to_ocr", "HI<loc_100><loc_100><loc_299><loc_399>", ("text", "rectangle", "HI")),
        ("region_to_description", "a car<loc_1><loc_1><loc_2><loc_2>", ("object", "rectangle", "a car")),
        ("region_to_segmentation", {"polygons": [[[0, 0, 9, 0, 9, 9]]], "labels": [""]}, ("object", "polygon", None)),
    ],
)
def test_what_is_drawn_around_is_answered_and_nothing_replaced(predict, model, task, answer, expected):
    model.answers = {f"<{task.upper()}>": answer}
    marks = [
        {"type": "rectangle", "label": 1, "data": [60, 40, 20, 10]}, {"type": "point", "label": 1, "data": [1, 2]},
        {"type": "rectangle", "label": 0, "data": [0, 0, 1, 1]}, 7,
    ]  # fmt: skip
    data = PublishedResponse.model_validate(predict({"current_task": task, "marks": marks}))
    [shape] = data.shapes
    assert (shape.label, shape.shape_type, shape.description) == expected and data.replace is False
    assert model.asked[-1][1] == "20.0,10.0,60.0,40.0"


def test_the_image_may_be_base64(predict, model, image_url):
    model.answers = {"<CAPTION>": "a star"}
    assert predict({"current_task": "caption"}, image=image_url.partition(",")[2])["description"] == "a star"


@pytest.mark.parametrize(
    ("params", "changed", "status", "code"),
    [
        ({"current_task": "dance"}, {}, 400, "INVALID_PROMPT"),
        ({"current_task": ["od"]}, {}, 400, "INVALID_PROMPT"),
        ({"current_task": "find"}, {}, 400, "INVALID_PROMPT"),
        ({"current_task": "find", "text_prompt": " , "}, {}, 400, "INVALID_PROMPT"),
        ({"current_task": "find", "text_prompt": "car," * 101}, {}, 400, "INVALID_PROMPT"),
        ({"current_task": "ocr_region"}, {}, 400, "INVALID_PROMPT"),
        ({"current_task": "ocr_region", "marks": [MARK] * 101}, {}, 400, "INVALID_PROMPT"),
        ({"current_task": "ocr_region", "marks": [{"type": "rectangle", "data": "abcd"}]}, {}, 400, "INVALID_PROMPT"),
        ({"conf_threshold": "high"}, {}, 400, "INVALID_REQUEST"),
        *(({"conf_threshold": given}, {}, 400, "INVALID_REQUEST") for given in (-0.1, 1.5, 50, True, "0.5", [0.5])),
        ({"current_task": "caption", "conf_threshold": 2}, {}, 400, "INVALID_REQUEST"),
        ({"num_beams": "x"}, {}, 400, "INVALID_OPTION"),
        ({}, {"model": "gpt"}, 404, "MODEL_NOT_FOUND"),
        ({}, {"image": "http://127.0.0.1/a.png"}, 400, "INVALID_IMAGE"),
        ({}, {"image": "data:image/png;base64,!"}, 400, "INVALID_IMAGE"),
        ([], {}, 400, "INVALID_REQUEST"),
    ],
)
def test_mistakes_are_named(predict, model, params, changed, status, code):
    model.answers = {"<OD>": {"bboxes": [], "labels": []}}
    assert predict(params, status, **changed)["code"] == code


def test_back_pressure_has_a_status_of_its_own(predict, model, monkeypatch):
    monkeypatch.setattr("florence2_client.gateway.app.DEFAULT_RETRY_SECONDS", 0)
    model.answers = {"<OD>": QueueFull("the queue is full")}
    assert predict({}, 429)["code"] == "QUEUE_FULL"


def test_the_key_is_a_header_of_its_own(open_gateway):
    client = open_gateway(keys=("secret",))
    assert client.get("/x-anylabeling/health").status_code == 200
    refused = client.get("/x-anylabeling/v1/models", headers={"Token": "wrong"})
    assert refused.status_code == 401 and refused.json()["success"] is False
    assert client.get("/x-anylabeling/v1/models", headers={"Token": "secret"}).status_code == 200
