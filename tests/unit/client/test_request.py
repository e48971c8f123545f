"""The tensors that a call sends, and the values that it refuses."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from florence2.errors import InvalidOption, InvalidPrompt
from florence2_client import Client
from florence2_client.request import build_request
from florence2_client.transports.grpc import _inputs
from florence2_client.transports.http import decode_response, encode_request
from tests.unit.client.fake_transport import FakeTransport, png, sent_by

WIRE_TYPES = [
    ("IMAGE", "BYTES", [1]),
    ("TASK", "BYTES", [1]),
    ("TEXT", "BYTES", [1]),
    ("NUM_BEAMS", "INT32", [1]),
    ("LENGTH_PENALTY", "FP32", [1]),
    ("EARLY_STOPPING", "BOOL", [1]),
]


def test_smallest_request_holds_only_image_and_task():
    """Names, types and shapes are those of the ensemble, and what was left out is not sent."""
    data = png()
    tensors = sent_by(data, "od")
    assert set(tensors) == {"IMAGE", "TASK"}
    assert all(tensor.dtype == np.object_ and tensor.shape == (1,) for tensor in tensors.values())
    assert tensors["IMAGE"][0] == data
    assert tensors["TASK"][0] == b"<OD>"


def test_full_request_has_the_contract_types():
    """Every optional input is a tensor [1] of the contract's type; 0 and False are values, not absences."""
    tensors = sent_by(
        png(),
        "<CAPTION_TO_PHRASE_GROUNDING>",
        "ein Hündchen",
        max_new_tokens=np.int64(5),
        num_beams=1,
        no_repeat_ngram_size=0,
        length_penalty=0,
        early_stopping=False,
        temperature=0,
        top_k=0,
        seed=2**63 - 1,
    )
    assert tensors["TEXT"][0] == "ein Hündchen".encode()
    options = set(tensors) - {"IMAGE", "TASK", "TEXT"}
    assert {name: (tensors[name].dtype, tensors[name].tolist()) for name in options} == {
        "MAX_NEW_TOKENS": (np.int32, [5]),
        "NUM_BEAMS": (np.int32, [1]),
        "NO_REPEAT_NGRAM_SIZE": (np.int32, [0]),
        "LENGTH_PENALTY": (np.float32, [0.0]),
        "EARLY_STOPPING": (np.bool_, [False]),
        "TEMPERATURE": (np.float32, [0.0]),
        "TOP_K": (np.int32, [0]),
        "SEED": (np.int64, [2**63 - 1]),
    }


def test_tensors_fit_tritonclient():
    """tritonclient takes the tensors as BYTES, INT32, FP32 and BOOL of shape [1]."""
    tensors = build_request(png(), "od", "x", num_beams=2, length_penalty=1.0, early_stopping=True).tensors
    assert [(i.name(), i.datatype(), list(i.shape())) for i in _inputs(tensors)] == WIRE_TYPES


def test_tensors_travel_over_http_as_triton_encodes_them():
    """The header names BYTES, INT32, FP32 and BOOL of shape [1]; the binary data follows in the same order."""
    tensors = build_request(png(), "od", "x", num_beams=2, length_penalty=1.0, early_stopping=True).tensors
    body, json_length = encode_request(tensors, timeout=2.5)
    header = json.loads(body[:json_length])
    assert [(i["name"], i["datatype"], i["shape"]) for i in header["inputs"]] == WIRE_TYPES
    assert header["parameters"] == {"binary_data_output": True, "timeout": 2_500_000}
    response = json.dumps({"outputs": header["inputs"]}).encode()
    outputs = decode_response(response + body[json_length:], str(len(response)))
    assert {name: (array.dtype, array.tolist()) for name, array in outputs.items()} == {
        name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("od", "<OD>"),
        ("<OD>", "<OD>"),
        ("Region-To-Ocr", "<REGION_TO_OCR>"),
        ("<DocVQA>What is the date?", "<DocVQA>What is the date?"),
        ("<OPEN_VOCABULARY_DETECTION>a cat", "<OPEN_VOCABULARY_DETECTION>a cat"),
    ],
)
def test_task_names_become_tokens_and_prompts_stay(written, sent):
    """A name in any case is its token; any other prompt reaches the model as it is."""
    assert sent_by(png(), written)["TASK"][0] == sent.encode()


@pytest.mark.parametrize("region", [(1, 2, 3.5, 4), [1, 2, 3.5, 4], np.array([1, 2, 3.5, 4], dtype=np.float32)])
def test_region_may_be_any_four_numbers(region):
    """Tuples, lists and arrays in pixels go out in the contract's form; anything else is refused."""
    assert sent_by(png(), "region_to_ocr", region)["TEXT"][0] == b"1.0,2.0,3.5,4.0"
    for wrong in (region[:3], 7, [1, 2, "c", "d"]):
        with pytest.raises(InvalidPrompt, match="four numbers"):
            sent_by(png(), "region_to_ocr", wrong)


def test_large_image_is_scaled_down_only_if_asked():
    """With `max_side` a smaller image is sent and regions shrink with it; a small image travels untouched."""
    small, large = png((40, 30)), png((400, 300))
    assert sent_by(large)["IMAGE"][0] == large
    assert sent_by(small, max_side=100)["IMAGE"][0] == small
    tensors = sent_by(large, "region_to_ocr", (40, 40, 400, 300), max_side=100)
    assert Image.open(io.BytesIO(tensors["IMAGE"][0])).size == (100, 75)
    assert tensors["TEXT"][0] == b"10.0,10.0,100.0,75.0"
    tokens = "<loc_1><loc_2><loc_3><loc_4>"
    assert sent_by(large, "region_to_ocr", tokens, max_side=100)["TEXT"][0] == tokens.encode()
    with pytest.raises(InvalidOption):
        sent_by(large, max_side=0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_beams": 2.5}, InvalidOption),
        ({"num_beams": "3"}, InvalidOption),
        ({"max_new_tokens": 2**31}, InvalidOption),
        ({"seed": 2**63}, InvalidOption),
        ({"seed": 0.5}, InvalidOption),
        ({"length_penalty": "long"}, InvalidOption),
        ({"timeout": 0}, InvalidOption),
        ({"timeout": float("nan")}, InvalidOption),
        ({"early_stopping": "false"}, InvalidOption),
        ({"early_stopping": 2}, InvalidOption),
        ({"text": (0, 0, float("inf"), 9)}, InvalidPrompt),
        ({"text": (0, 0, float("nan"), 9)}, InvalidPrompt),
        ({"text": "\ud800"}, InvalidPrompt),
    ],
)
def test_value_without_a_tensor_is_refused(options, error):
    """Nothing is sent."""
    transport = FakeTransport()
    with pytest.raises(error):
        Client(transport=transport).run(png(), "od", **options)
    assert transport.asked == []


@pytest.mark.parametrize("region", [[1] * 9999, {"x": 1}, b"abcd", 7, [[1, 2, 3, 4]] * 999, object()])
def test_a_wrong_region_is_refused_in_a_short_sentence(region):
    with pytest.raises(InvalidPrompt, match="a region is four numbers") as caught:
        build_request(png(), "region_to_ocr", region)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [[1] * 9999, "x" * 9999, object(), int])
def test_a_wrong_option_is_refused_in_a_short_sentence(value):
    for option in ("num_beams", "length_penalty", "timeout", "max_side"):
        with pytest.raises(InvalidOption) as caught:
            build_request(png(), "od", **{option: value})
        assert len(str(caught.value)) < 250


def test_a_region_as_text_is_left_to_the_server():
    assert sent_by(png(), "region_to_ocr", "1")["TEXT"][0] == b"1"
