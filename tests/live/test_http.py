"""Requests and errors over HTTP, with urllib and JSON."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request

import pytest

from tests.live.plain_requests import SEEDS, ask, png, scene_image


def generate(server, body: dict) -> tuple[int, dict]:
    """POST to Triton's generate extension."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/florence2_ensemble/generate", json.dumps(body).encode(), {"Connection": "close"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_generate_over_http_needs_only_json(server):
    """The image is base64, and the response has all outputs."""
    image = png(scene_image(SEEDS[0]))
    status, answer = generate(server, {"IMAGE": base64.b64encode(image).decode(), "TASK": "<OD>", "NUM_BEAMS": 1})
    assert status == 200
    assert json.loads(answer["RESULT"]) == json.loads(ask(server, image, "<OD>", NUM_BEAMS=1)["RESULT"])
    assert answer["IMAGE_SIZE"] == [320, 320]


def test_generate_names_a_mistake(server):
    """Triton answers all errors with status 400. The sentence is ours."""
    status, answer = generate(server, {"IMAGE": "bm90IGEgcGljdHVyZQ==", "TASK": "<OD>"})
    assert status == 400
    assert "image" in answer["error"]


@pytest.mark.parametrize("model", ["florence2_ensemble/generate", "florence2_ensemble/infer"])
def test_an_error_has_its_code_over_http(server, model):
    """Clients need it, because Triton gives every error of generate the same status."""
    image = base64.b64encode(b"junk").decode()
    if model.endswith("generate"):
        body = {"IMAGE": image, "TASK": "<OD>"}
    else:
        inputs = {"IMAGE": image, "TASK": "<OD>"}.items()
        body = {"inputs": [{"name": k, "shape": [1], "datatype": "BYTES", "data": [v]} for k, v in inputs]}
    request = urllib.request.Request(f"{server.http_url}/v2/models/{model}", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert "INVALID_IMAGE: " in json.load(caught.value)["error"]
