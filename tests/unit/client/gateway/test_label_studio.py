"""Label Studio's protocol: what is asked for each labeling configuration, and what results the answers become."""

from __future__ import annotations

import pytest

from florence2.errors import ConnectionFailed, InvalidRequest
from florence2_client.gateway.label_studio.config import Label, read_config
from tests.unit.client.gateway.labeling import (
    BOXES,
    CHOICES,
    FIND,
    IMAGE,
    LEVEL,
    NOTHING,
    OCR,
    OUTLINE,
    OUTLINES,
    READ,
    SKEWED,
    TILTED,
    found,
    lines,
    outlined,
    results,
    view,
)


def test_each_label_is_looked_for_and_boxes_are_percentages(label_studio, model):
    model.answers = {(FIND, "Star"): found([20, 10, 60, 40]), (FIND, "Car"): NOTHING}
    answer = label_studio(view(BOXES))
    [box] = results(answer)
    assert sorted(model.asked) == [(FIND, "Car"), (FIND, "Star")]
    assert box.pop("id") and box == {
        "type": "rectanglelabels", "from_name": "label", "to_name": "image", "score": 0.75,
        "original_width": 200, "original_height": 100, "image_rotation": 0,
        "value": {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": ["Star"]},
    }  # fmt: skip
    assert answer["model_version"] == "florence2"
    assert {**answer["results"][0], "result": None} == {"result": None, "score": 0.75, "model_version": "florence2"}


def test_phrases_of_a_label_stand_for_it(label_studio, model):
    labels = '<Label value="Vehicle" alias="v" predicted_values="car, red truck"/><Label value="traffic_light"/>'
    model.answers = {FIND: NOTHING, (FIND, "red truck"): found([0, 0, 20, 10])}
    config = view(f'<RectangleLabels name="label" toName="image">{labels}</RectangleLabels>')
    [box] = results(label_studio(config))
    assert {text for _, text in model.asked} == {"car", "red truck", "traffic light"}
    assert box["value"]["rectanglelabels"] == ["v"]


def test_labels_may_be_in_the_data(label_studio, model, image_url):
    model.answers = {FIND: NOTHING}
    labels = ["cat", {"value": "Dog", "predicted_values": "puppy"}, 7, {}]
    label_studio(
        view('<RectangleLabels name="l" toName="image" value="$labels"/>'), {"image": image_url, "labels": labels}
    )
    assert {text for _, text in model.asked} == {"cat", "puppy", "7"}


def test_a_task_can_be_chosen_and_its_names_matched(label_studio, model):
    answer = {"bboxes": [[0, 0, 20, 10], [0, 0, 2, 1], [0, 0, 4, 4]], "labels": ["STAR", "car", "tree"]}
    model.answers = {"<OD>": answer | {"scores": [0.1] * 3, "confidences": [0.9, 0.2, 0.9]}}
    config = view(BOXES.replace("toName", 'model_task="object detection" model_score_threshold="0.5" toName'))
    assert [each["value"]["rectanglelabels"] for each in results(label_studio(config))] == [["Star"]]
    assert model.asked == [("<OD>", None)]


def test_grounding_takes_a_caption_from_the_configuration(label_studio, model):
    model.answers = {"<CAPTION_TO_PHRASE_GROUNDING>": {"bboxes": [[0, 0, 20, 10]], "labels": ["star"]}}
    config = view(BOXES.replace("toName", 'ml_task="grounding" model_text="a star and a car" toName'))
    [box] = results(label_studio(config))
    assert model.asked == [("<CAPTION_TO_PHRASE_GROUNDING>", "a star and a car")]
    assert box["value"]["rectanglelabels"] == ["Star"] and "score" not in box


def test_boxes_without_labels_are_proposals(label_studio, model):
    model.answers = {"<REGION_PROPOSAL>": {"bboxes": [[0, 0, 20, 10]], "labels": [""], "confidences": [0.5]}}
    [box] = results(label_studio(view('<Rectangle name="box" toName="image"/>')))
    assert box["type"] == "rectangle" and set(box["value"]) == {"x", "y", "width", "height", "rotation"}


def test_a_tool_without_labels_shares_those_of_another_control(label_studio, model):
    model.answers = {FIND: found([0, 0, 20, 10])}
    shared = '<Labels name="label" toName="image"><Label value="star"/></Labels>'
    box, name = results(
        label_studio(view('<Rectangle name="box" toName="image"/><Polygon name="p" toName="image"/>', shared))
    )
    assert (box["from_name"], name["from_name"], name["type"]) == ("box", "label", "labels")
    assert box["id"] == name["id"] and name["value"] == {**box["value"], "labels": ["star"]}


def test_each_polygon_of_an_outline_is_a_result(label_studio, model):
    model.answers = {OUTLINE: outlined([0, 0, 20, 0, 20, 10], [100, 50, 220, 50, 120, 60], [1, 1, 2, 2])}
    first, second = results(label_studio(view(OUTLINES)))
    assert first["value"] == {"points": [[0, 0], [10, 0], [10, 10]], "closed": True, "polygonlabels": ["star"]}
    assert second["value"]["points"][1] == [100, 50]  # beyond the image's edge
    assert model.asked == [(OUTLINE, "star")]


def test_brushes_are_masks(label_studio, model):
    model.answers = {OUTLINE: outlined([0, 0, 100, 0, 100, 50, 0, 50])}
    [mask] = results(label_studio(view(OUTLINES.replace("PolygonLabels", "BrushLabels"))))
    assert mask["type"] == "brushlabels" and mask["value"]["brushlabels"] == ["star"]
    assert mask["value"]["format"] == "rle" and mask["value"]["rle"][:4] == [0, 1, 56, 128]  # 200 * 100 * 4 values


def test_lines_of_text_are_rectangles_if_they_can_be(label_studio, model):
    model.answers = {READ: lines(LEVEL, TILTED, SKEWED)}
    answer = results(label_studio(view(OCR)))
    assert [each["type"] for each in answer] == [
        *["rectangle", "labels", "textarea"] * 2,
        "polygon",
        "labels",
        "textarea",
    ]
    level, tilted, skewed = answer[0::3]
    assert level["value"] == {"x": 5, "y": 10, "width": 25, "height": 10, "rotation": 0}
    assert tilted["value"] == pytest.approx({"x": 25, "y": 20, "width": 25, "height": 20, "rotation": 36.8698976})
    assert skewed["value"]["points"] == [[0, 0], [45, 40], [49.5, 90], [2.5, 50]]
    for shape, label, text in zip(answer[0::3], answer[1::3], answer[2::3], strict=True):
        assert shape["id"] == label["id"] == text["id"]
        assert label["value"] == {**shape["value"], "labels": ["Text"]}
        assert text["value"] == {**shape["value"], "text": ["HELLO"]} and text["from_name"] == "transcription"


@pytest.mark.parametrize("tool", ["Rectangle", "Polygon"])
def test_lines_of_text_fit_the_only_tool(label_studio, model, tool):
    model.answers = {READ: lines(LEVEL, SKEWED)}
    area = '<TextArea name="t" toName="image" perRegion="true"/>'
    answer = results(label_studio(view(f'<{tool} name="box" toName="image"/>', area)))
    assert [each["type"] for each in answer] == [tool.lower(), "textarea"] * 2


def test_text_areas_hold_captions_or_what_their_name_says(label_studio, model):
    model.answers = {"<CAPTION>": "a star", "<DETAILED_CAPTION>": "a large star", "<OCR>": "HELLO", READ: lines(LEVEL)}
    areas = ["summary", "detailed_caption", "ocr"]
    config = [f'<TextArea name="{name}" toName="image"/>' for name in areas]
    answer = results(label_studio(view(*config, '<TextArea name="read" toName="image" model_task="ocr with region"/>')))
    texts = [(each["from_name"], each["value"]) for each in answer]
    assert texts == [
        ("summary", {"text": ["a star"]}), ("detailed_caption", {"text": ["a large star"]}),
        ("ocr", {"text": ["HELLO"]}), ("read", {"text": ["HELLO"]}),
    ]  # fmt: skip
    assert answer[0]["score"] == pytest.approx(0.6065307)


def test_regions_can_be_described(label_studio, model):
    model.answers = {FIND: found([20, 10, 60, 40]), "<REGION_TO_DESCRIPTION>": "a blue car<loc_1><loc_2><loc_3><loc_4>"}
    area = '<TextArea name="what" toName="image" perRegion="true" model_task="region_to_description"/>'
    config = view(BOXES.replace('<Label value="Star"/>', ""), area)
    box, text = results(label_studio(config))
    assert model.asked == [(FIND, "Car"), ("<REGION_TO_DESCRIPTION>", "<loc_100><loc_100><loc_300><loc_400>")]
    assert text["id"] == box["id"] and text["value"]["text"] == ["a blue car"] and text["value"]["width"] == 20


def test_dense_captions_are_texts_of_their_regions(label_studio, model):
    model.answers = {"<DENSE_REGION_CAPTION>": {"bboxes": [[0, 0, 20, 10]], "labels": ["a red car"]}}
    area = '<TextArea name="what" toName="image" perRegion="true"/>'
    box, text = results(
        label_studio(view('<Rectangle name="box" toName="image" model_task="dense_region_caption"/>', area))
    )
    assert text["value"] == {**box["value"], "text": ["a red car"]} and len(model.asked) == 1


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("", ["car"]), ('choice="multiple"', ["car", "star"]),
        ('choice="multiple" model_score_threshold="0.8"', ["car"]), ('model_task="caption"', ["dog"]),
    ],
)  # fmt: skip
def test_choices_are_what_is_found_or_said(label_studio, model, attributes, expected):
    model.answers = {
        (FIND, "star"): found([0, 0, 9, 9], confidence=0.6), (FIND, "car"): found([0, 0, 9, 9], confidence=0.9),
        (FIND, "dog"): NOTHING, "<CAPTION>": "a Dog with scarves",
    }  # fmt: skip
    [choice] = results(label_studio(view(CHOICES.replace("toName", f"{attributes} toName"))))
    assert choice["type"] == "choices" and choice["value"] == {"choices": expected}


def test_controls_that_the_model_knows_nothing_of_have_no_results(label_studio, model):
    controls = [
        '<KeyPointLabels name="k" toName="image"><Label value="a"/></KeyPointLabels>',
        '<Polygon name="p" toName="image"/>',
        '<Choices name="c" toName="image"/>',
        '<Rating name="r" toName="image"/>',
        '<TextArea name="t" toName="other"/>',
        BOXES.replace("toName", 'model_skip="true" toName'),
    ]
    assert results(label_studio(view(*controls))) == [] and model.asked == []


def test_a_control_answers_for_its_own_image(label_studio, model, image_url):
    model.answers = {"<CAPTION>": "a star"}
    config = f'<View>{IMAGE}<Image name="other" value="$second"/><TextArea name="t" toName="other"/></View>'
    assert results(label_studio(config, {"second": image_url}))[0]["to_name"] == "other"


def test_the_images_of_a_list_are_pages(label_studio, model, image_url):
    model.answers = {FIND: found([0, 0, 20, 10]), "<CAPTION>": "a star"}
    config = view(BOXES.replace('<Label value="Car"/>', "")).replace("value=", "valueList=", 1)
    config = config.replace("</View>", '<Image name="cover" value="$cover"/><TextArea name="t" toName="cover"/></View>')
    answer = results(label_studio(config, {"image": [image_url] * 3, "cover": image_url}))
    assert [(each["type"], each.get("item_index")) for each in answer] == [
        ("rectanglelabels", 0), ("textarea", None), ("rectanglelabels", 1), ("rectanglelabels", 2),
    ]  # fmt: skip
    assert label_studio(config, {"image": [image_url] * 101})["results"][0]["error"]["code"] == "INVALID_REQUEST"


# ---- mistakes


def test_a_task_that_fails_leaves_the_others(label_studio, model, image_url):
    model.answers = {FIND: found([0, 0, 20, 10])}
    bad = [
        {"image": "http://127.0.0.1/a.png"},
        {},
        {"image": ["a"]},
        {"image": "/data/upload/1/a.png"},
        {"image": "s3://b/a"},
    ]
    answer = label_studio(view(BOXES), {"image": image_url}, *bad, {"$undefined$": image_url})["results"]
    assert [len(each["result"]) for each in answer] == [2, 0, 0, 0, 0, 0, 2]
    for each in answer[1:6]:
        assert each["error"]["code"] == "INVALID_IMAGE" and each["score"] == 0
        assert each["model_version"] == "florence2 (INVALID_IMAGE)"  # so Label Studio asks for it again
    assert "--label-studio" in answer[4]["error"]["message"]


def test_a_server_that_is_not_there_is_no_prediction(label_studio, model):
    model.answers = {FIND: ConnectionFailed("no server answers")}
    assert label_studio(view(BOXES), status=503)["error"]["code"] == "CONNECTION_FAILED"


@pytest.mark.parametrize(
    "config",
    [
        "", "<View", "<View/><View/>", "\ud800", "\0", "<View>&a;</View>",
        '<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>', '<!DOCTYPE v SYSTEM "file:///etc/passwd"><View/>',
        view(*(f'<Image name="{number}" value="$image"/>' for number in range(20))), view(*[BOXES] * 101),
    ],
)  # fmt: skip
def test_other_text_is_no_configuration(config):
    with pytest.raises(InvalidRequest, match="label_config"):
        read_config(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (view(BOXES.replace("toName", 'model_task="captoin" toName')), "did you mean caption"),
        *(
            (view(BOXES.replace("toName", f'model_score_threshold="{given}" toName')), "must be a number from 0 to 1")
            for given in ("high", "nan", "inf", "-0.1", "1.5", "")
        ),
        (view(BOXES.replace("<Label", "<Label value='a'/>" * 99 + "<Label", 1)), "101 labels"),
    ],
)  # fmt: skip
def test_mistakes_in_a_configuration_are_named(label_studio, model, config, words):
    model.answers = {FIND: found([0, 0, 20, 10])}
    assert words in label_studio(config)["results"][0]["error"]["message"]


def test_a_threshold_is_checked_even_if_nothing_is_found(label_studio, model):
    model.answers = {FIND: NOTHING}
    config = view(BOXES.replace("toName", 'model_score_threshold="nan" toName'))
    assert "must be a number from 0 to 1" in label_studio(config)["results"][0]["error"]["message"]


def test_a_configuration_is_read_in_any_layout():
    config = read_config(
        "<View><Header value='x'/><Style>.a{}</Style><View><IMAGE NAME='i' VALUE='$pic'/></View>"
        "<RectangleLabels name='l' toName='x,i'><View><Label value='a'><Label value='b'/></Label></View>"
        "<Choice value='c'/></RectangleLabels></View>"
    )
    [control] = config.controls
    assert config.images == {"i": "pic"} and control.to_name == "i"
    assert control.own_labels == (Label("a", ("a",)), Label("b", ("b",)))
