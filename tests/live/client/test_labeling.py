"""Labeling tools in front of the real server: Label Studio's protocol and X-AnyLabeling's."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from florence2.server.embedded import EmbeddedServer
from florence2_client import Client
from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.gateway.server import Front

KEY = "a-key-of-the-test"
SCENE = Path(__file__).parents[3] / "demo/images/scene.png"
URL = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image"><Label value="the purple star"/><Label value="Tri" alias="triangle"
    predicted_values="the green triangle"/></RectangleLabels>
  <PolygonLabels name="outline" toName="image"><Label value="the purple star"/></PolygonLabels>
  <TextArea name="caption" toName="image"/>
</View>
"""
OCR = """
<View>
  <Image name="image" value="$image"/>
  <Rectangle name="bbox" toName="image"/>
  <Labels name="label" toName="image"><Label value="Text"/></Labels>
  <TextArea name="transcription" toName="image" perRegion="true"/>
</View>
"""


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[str]:
    front = Front("127.0.0.1", 0, drain_seconds=10)
    with front.running(make_app(GatewayOptions(url=server.grpc_url, keys=(KEY,)), None)):
        yield front.url


def predict(gateway, config, *images, context=None):
    tasks = [{"id": number, "data": {"image": image}} for number, image in enumerate(images)]
    body = {"tasks": tasks, "label_config": config, "project": "1.1", "params": {"context": context}}
    answer = httpx2.post(f"{gateway}/label-studio/predict", json=body, auth=("me", KEY), timeout=100)
    answer.raise_for_status()
    return answer.json()["results"]


def test_label_studio_gets_boxes_outlines_and_captions(server, gateway):
    good, bad = predict(gateway, CONFIG, URL, "data:image/png;base64,AAAA")
    with Client(server.grpc_url) as client:
        star, triangle = client.find(SCENE, ["the purple star", "the green triangle"])
        outline, caption = client.segment(SCENE, "the purple star"), client.caption(SCENE)
    width, height = outline.image_size
    boxes = [each for each in good["result"] if each["type"] == "rectanglelabels"]
    assert [each["value"]["rectanglelabels"] for each in boxes] == [["the purple star"], ["triangle"]]
    for box, [found] in zip(boxes, (star.objects, triangle.objects), strict=True):
        x1, y1, x2, y2 = found.box
        expected = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        scaled = {
            name: 100 * number / (width if name in ("x", "width") else height) for name, number in expected.items()
        }
        assert {name: box["value"][name] for name in scaled} == pytest.approx(scaled)
        assert box["score"] == found.confidence
    [polygon] = [each for each in good["result"] if each["type"] == "polygonlabels"]
    assert [x * width / 100 for x, _ in polygon["value"]["points"]] == pytest.approx(
        [x for x, _ in outline.objects[0].polygons[0]]
    )
    [text] = [each for each in good["result"] if each["type"] == "textarea"]
    assert text["value"] == {"text": [caption.answer.text]}
    assert bad["result"] == [] and bad["error"]["code"] == "INVALID_IMAGE" and 0 < good["score"] <= 1


def test_label_studio_gets_lines_of_text_and_what_is_drawn_around(gateway):
    [prediction] = predict(gateway, OCR, URL)
    texts = [each for each in prediction["result"] if each["type"] == "textarea"]
    assert [each["value"]["text"] for each in texts] == [["HELLO"], ["TRITON"]]
    box = next(each for each in prediction["result"] if each["id"] == texts[0]["id"] and each["type"] == "rectangle")
    [shape, text] = predict(gateway, OCR, URL, context={"result": [box]})[0]["result"]
    assert text["value"]["text"] == ["HELLO"] and text["id"] == shape["id"] == box["id"]


def test_x_anylabeling_gets_shapes(server, gateway):
    headers = {"Token": KEY}
    [model] = httpx2.get(f"{gateway}/x-anylabeling/v1/models", headers=headers, timeout=30).json()["data"]

    def send(**params):
        body = {"model": model, "image": URL, "params": params}
        return httpx2.post(f"{gateway}/x-anylabeling/v1/predict", json=body, headers=headers, timeout=100).json()[
            "data"
        ]

    with Client(server.grpc_url) as client:
        expected = client.detect(SCENE)
    shapes = send(current_task="od", conf_threshold=0.0)["shapes"]
    assert [each["label"] for each in shapes] == expected.labels
    assert [[*each["points"][0], *each["points"][2]] for each in shapes] == expected.answer.bboxes
    assert [each["description"] for each in send(current_task="ocr_with_region")["shapes"]] == ["HELLO", "TRITON"]
    assert send(current_task="detailed_caption")["description"].startswith("The image shows")
    marks = [{"type": "rectangle", "label": 1, "data": [60, 175, 295, 455]}]
    [star] = send(current_task="region_to_category", marks=marks)["shapes"]
    assert star["label"] == "star"
