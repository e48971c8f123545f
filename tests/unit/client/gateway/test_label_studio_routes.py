"""How Label Studio connects, and what the gateway's log knows of labeling."""

from __future__ import annotations

import json

import pytest

from florence2.errors import InvalidRequest
from tests.unit.client.gateway.labeling import BOXES, view


def test_the_log_has_the_tokens_of_all_tasks(open_gateway, model, image_url):
    client = open_gateway()
    model.answers = {"<CAPTION>": "a star"}
    tasks = [{"data": {"image": image_url}}] * 3
    body = {"tasks": tasks, "label_config": view('<TextArea name="t" toName="image"/>')}
    client.post("/label-studio/predict", json=body)
    client.post(
        "/x-anylabeling/v1/predict",
        json={"model": "florence2", "image": image_url, "params": {"current_task": "caption"}},
    )
    first, second = map(json.loads, client.lines)
    assert (first["task"], first["prompt"], first["completion"]) == ("label-studio", 3 * 590, 3 * 7)
    assert (second["task"], second["prompt"], second["completion"]) == ("<CAPTION>", 590, 7)


def test_a_request_has_at_most_a_thousand_tasks(open_gateway, model, image_url):
    body = {"tasks": [{"data": {"image": image_url}}] * 1001, "label_config": view(BOXES)}
    answer = open_gateway().post("/label-studio/predict", json=body)
    assert answer.status_code == 400 and "1000" in answer.json()["error"]["message"] and not model.asked


def test_label_studio_connects_with_a_key_as_password(open_gateway):
    client = open_gateway(keys=("secret",))
    assert client.get("/label-studio/health").json()["status"] == "UP"
    assert client.post("/label-studio/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201
    assert client.post("/label-studio/setup", json={}).status_code == 401
    assert client.post("/label-studio/setup", json={}, auth=("me", "wrong")).status_code == 401
    project = {"project": "1.1", "schema": "<View/>", "hostname": "http://evil.test", "access_token": "x"}
    assert client.post("/label-studio/setup", json=project, auth=("me", "secret")).json() == {
        "model_version": "florence2"
    }
    assert client.get("/label-studio/versions", auth=("me", "secret")).json() == {"versions": ["florence2"]}
    assert client.post("/label-studio/train", json={}, auth=("me", "secret")).status_code == 201
    assert client.get("/label-studio/", auth=("me", "secret")).json()["status"] == "UP"


def test_a_bad_address_of_label_studio_is_refused(open_gateway):
    for address in "localhost:8080", "ftp://studio", "http://", "http://user@studio":
        with pytest.raises(InvalidRequest, match="address of Label Studio"):
            open_gateway(label_studio=(address, ""))
