"""Label Studio while a user draws, and its real SDK, where it is installed."""

from __future__ import annotations

import pytest

from florence2.errors import InvalidImage
from tests.unit.client.gateway.labeling import (
    BOXES,
    CHOICES,
    FIND,
    LEVEL,
    OCR,
    OUTLINE,
    OUTLINES,
    READ,
    SKEWED,
    TILTED,
    drawn,
    found,
    lines,
    outlined,
    results,
    view,
)

BOX = "<loc_100><loc_100><loc_300><loc_400>"


def test_what_is_drawn_around_is_outlined(label_studio, model):
    model.answers = {"<REGION_TO_SEGMENTATION>": outlined([20, 10, 60, 10, 60, 40])}
    config = view(BOXES.replace('"label"', '"box"'), OUTLINES.replace('"star"', '"Star"'))
    [polygon] = results(label_studio(config, context=drawn(from_name="box")))
    assert model.asked == [("<REGION_TO_SEGMENTATION>", BOX)]
    assert polygon["type"] == "polygonlabels" and polygon["value"]["polygonlabels"] == ["Star"]


def test_a_box_is_fitted_to_its_object_and_named(label_studio, model):
    model.answers = {"<REGION_TO_SEGMENTATION>": outlined([24, 12, 56, 12, 56, 38]), "<REGION_TO_CATEGORY>": "car"}
    [box] = results(label_studio(view(BOXES), context=drawn(labels=())))
    assert box["value"] == {"x": 12, "y": 12, "width": 16, "height": 26, "rotation": 0, "rectanglelabels": ["Car"]}
    assert [task for task, _ in model.asked] == ["<REGION_TO_CATEGORY>", "<REGION_TO_SEGMENTATION>"]


def test_what_is_drawn_around_is_read(label_studio, model):
    model.answers = {"<REGION_TO_OCR>": "HELLO<loc_1><loc_2><loc_3><loc_4>", "<REGION_TO_CATEGORY>": "text"}
    shape, text = results(label_studio(view(OCR), context=drawn("rectangle", (), "bbox")))
    assert shape["id"] == text["id"] == "r1" and text["value"]["text"] == ["HELLO"]
    assert shape["value"]["labels"] == ["Text"] and ("<REGION_TO_OCR>", BOX) in model.asked


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ({"points": [[10, 10], [30, 20], [20, 40]]}, BOX), ({"x": 20, "y": 25, "radiusX": 10, "radiusY": 15}, BOX),
        ({"x": 90, "y": 90, "width": 30, "height": 30}, "<loc_900><loc_900><loc_999><loc_999>"),
    ],
)  # fmt: skip
def test_other_shapes_stand_for_the_box_around_them(label_studio, model, value, tokens):
    model.answers = {"<REGION_TO_SEGMENTATION>": outlined([20, 10, 60, 10, 60, 40])}
    label_studio(view(OUTLINES), context=drawn("ellipse", (), **value))
    assert model.asked == [("<REGION_TO_SEGMENTATION>", tokens)]


@pytest.mark.parametrize(
    "context",
    [{"result": None}, {"result": [1, {}]}, drawn("keypointlabels", x=10, y=10), drawn(points=[]),
     drawn(x=None, y=1, width=1, height=1), drawn(points=[[1]])],
)  # fmt: skip
def test_what_has_no_box_changes_nothing(label_studio, model, context):
    assert results(label_studio(view(OUTLINES), context=context)) == [] and model.asked == []


def test_a_region_without_a_usable_id_has_one(label_studio, model):
    model.answers = {"<REGION_TO_OCR>": "HELLO", "<REGION_TO_CATEGORY>": "text"}
    context = drawn("rectangle", (), "bbox")
    for given in [], None, 7:
        context["result"][0]["id"] = given
        shape, text = results(label_studio(view(OCR), context=context))
        assert shape["id"] == text["id"] == ("7" if given else "drawn")


def test_what_is_drawn_on_a_page_stays_there(label_studio, model, image_url):
    model.answers = {"<REGION_TO_SEGMENTATION>": outlined([20, 10, 60, 10, 60, 40])}
    config, data = view(OUTLINES).replace("value=", "valueList=", 1), {"image": ["none.png", image_url]}
    context = drawn(labels=())
    context["result"][0]["item_index"] = 1
    [polygon] = results(label_studio(config, data, context=context))
    assert polygon["item_index"] == 1
    for number in 2, -1, "1":
        context["result"][0]["item_index"] = number
        assert label_studio(config, data, context=context, status=400)["error"]["code"] == "INVALID_REQUEST"


def test_a_context_in_which_nothing_was_drawn_changes_nothing(label_studio, model):
    model.answers = {OUTLINE: outlined([20, 10, 60, 10, 60, 40])}
    assert len(results(label_studio(view(OUTLINES), context={"project_credentials_login": None}))) == 1


def test_a_failure_while_drawing_is_the_response(label_studio, model):
    model.answers = {"<REGION_TO_SEGMENTATION>": InvalidImage("the image is damaged")}
    assert label_studio(view(OUTLINES), context=drawn(), status=400)["error"]["code"] == "INVALID_IMAGE"


EVERY_CONFIG = [
    view(BOXES), view(OUTLINES), view(OUTLINES.replace("PolygonLabels", "BrushLabels")), view(OCR), view(CHOICES),
    view('<TextArea name="t" toName="image"/>'), view('<Rectangle name="box" toName="image"/>'),
    view('<RectangleLabels name="l" toName="image"><Label value="Car" alias="c"/></RectangleLabels>'),
    view(BOXES, '<Choices name="c" toName="image" perRegion="true"><Choice value="car"/></Choices>'),
    view(BOXES, '<TextArea name="t" toName="image" perRegion="true" model_task="region to description"/>'),
    view('<Rectangle name="b" toName="image"/><Labels name="l" toName="image"><Label value="a"/></Labels>'),
    view('<Brush name="b" toName="image"/><Labels name="l" toName="image"><Label value="a"/></Labels>'),
]  # fmt: skip


@pytest.mark.parametrize("context", [None, drawn()], ids=["predicted", "drawn"])
@pytest.mark.parametrize("config", EVERY_CONFIG)
def test_the_sdk_accepts_predictions(label_studio, model, config, context):
    """It needs other packages than we do (numpy 2), so it has an environment of its own (docs/integrations.md)."""
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    model.answers = {
        FIND: found([20, 10, 60, 40], [150, 50, 220, 120]), OUTLINE: outlined([0, 0, 100, 0, 100, 50, 0, 50]),
        "<REGION_TO_SEGMENTATION>": outlined([0, 0, 100, 0, 100, 50]), READ: lines(LEVEL, TILTED, SKEWED),
        "<REGION_PROPOSAL>": {"bboxes": [[0, 0, 20, 10]], "labels": [""], "confidences": [0.5]},
        **dict.fromkeys(("<CAPTION>", "<REGION_TO_CATEGORY>", "<REGION_TO_DESCRIPTION>", "<REGION_TO_OCR>"), "car"),
    }  # fmt: skip
    if context and "<RectangleLabels" not in config:
        context = None
    answer = label_studio(config, context=context)
    [prediction] = answer["results"]
    assert prediction["result"]
    assert interface.LabelInterface(config).validate_prediction(prediction, return_errors=True) == []
