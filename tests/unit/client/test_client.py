"""The client library against a transport that records requests and answers from a script."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import io
import json

import numpy as np
import pytest
from PIL import Image

from florence2.answers import Boxes, Polygons, TextAnswer
from florence2.errors import (
    ERROR_CODES,
    SERVER_CODES,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    InvalidImage,
    InvalidOption,
    InvalidPrompt,
    InvalidRequest,
    ModelNotFound,
    Unavailable,
)
from florence2.tasks import TASKS
from florence2_client import AsyncClient, Client, Result, Tls
from florence2_client.request import build_request
from florence2_client.transports import Address, parse_url

WIRE_TYPES = [
    ("IMAGE", "BYTES", [1]),
    ("TASK", "BYTES", [1]),
    ("TEXT", "BYTES", [1]),
    ("NUM_BEAMS", "INT32", [1]),
    ("LENGTH_PENALTY", "FP32", [1]),
    ("EARLY_STOPPING", "BOOL", [1]),
]


def outputs(task="<OD>", answer=None, **changes):
    """The ensemble's output tensors for an answer."""
    answer = {"bboxes": [[1.0, 2.0, 3.5, 4.0]], "labels": ["café"], "scores": [0.5]} if answer is None else answer
    result = json.dumps({task: answer}, ensure_ascii=False)
    tensors = {
        "RESULT": np.array([result.encode()], dtype=object),
        "GENERATED_TEXT": np.array(["café<loc_1>".encode()], dtype=object),
        "FINISH_REASON": np.array([b"stop"], dtype=object),
        "NUM_TOKENS": np.array([7], dtype=np.int32),
        "SEQUENCE_SCORE": np.array([-0.25], dtype=np.float32),
        "IMAGE_SIZE": np.array([640, 480], dtype=np.int32),
    }
    return tensors | changes


class FakeTransport:
    """Answers every request with the same tensors and keeps what it was asked."""

    def __init__(self, answer=None):
        self.answer = answer or outputs()
        self.asked = []
        self.closed = 0

    def infer(self, model, tensors, timeout):
        self.asked.append((model, tensors, timeout))
        return self.answer

    def close(self):
        self.closed += 1


class AsyncFakeTransport(FakeTransport):
    async def infer(self, model, tensors, timeout):
        return super().infer(model, tensors, timeout)

    async def close(self):
        super().close()


def png(size=(4, 3), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def sent_by(image, task="od", text=None, **options):
    """The tensors that a call puts on the wire."""
    transport = FakeTransport()
    Client(transport=transport).run(image, task, text, **options)
    return transport.asked[0][1]


def sent_image(image):
    return Image.open(io.BytesIO(sent_by(image)["IMAGE"][0]))


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
    from florence2_client.transports.grpc import _inputs

    tensors = build_request(png(), "od", "x", num_beams=2, length_penalty=1.0, early_stopping=True).tensors
    assert [(i.name(), i.datatype(), list(i.shape())) for i in _inputs(tensors)] == WIRE_TYPES


def test_tensors_travel_over_http_as_triton_encodes_them():
    """The header names BYTES, INT32, FP32 and BOOL of shape [1]; the binary data follows in the same order."""
    from florence2_client.transports.http import decode_response, encode_request

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


def test_file_and_bytes_travel_untouched(tmp_path):
    """Encoded images are not re-encoded, whether they come as a path, a name or bytes."""
    data = png()
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for image in (path, str(path), data, bytearray(data), memoryview(data)):
        assert sent_by(image)["IMAGE"][0] == data


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "F"])
def test_pil_image_of_any_mode_is_encoded(mode):
    """Every mode of Pillow arrives as an image of the same size."""
    assert sent_image(Image.new(mode, (5, 4))).size == (5, 4)


def test_pil_image_keeps_its_pixels():
    """Encoding is lossless, and orientation metadata of the opened file does not turn the pixels in hand."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    opened = Image.open(buffer)
    assert opened.getexif()[0x0112] == 6
    sent = sent_image(opened)
    assert sent.getexif().get(0x0112) is None
    assert np.array_equal(np.asarray(sent), pixels)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_array_keeps_its_pixels(shape):
    """Gray, RGB and RGBA arrays arrive unchanged."""
    array = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(sent_image(array)), array.reshape(shape[:2] if shape[-1] == 1 else shape))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 4, 3), dtype=np.float32),
        np.zeros((3, 4, 2), dtype=np.uint8),
        np.zeros((1, 3, 4, 3), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        Image.new("RGB", (0, 3)),
        b"",
        None,
        7,
        "no/such/file.jpg",
        "nul\0byte",
        ".",
    ],
)
def test_unusable_image_is_refused_before_anything_is_sent(image):
    """What is no image at all never reaches the network."""
    transport = FakeTransport()
    with pytest.raises(InvalidImage):
        Client(transport=transport).run(image, "od")
    assert transport.asked == []


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
    """Values that do not fit the wire are invalid, and named before anything is sent."""
    with pytest.raises(error):
        Client(transport=FakeTransport()).run(png(), "od", **options)


def test_model_and_timeout_reach_the_transport():
    """The client asks the model it was made for, with the request's own time limit."""
    transport = FakeTransport()
    Client(model="mine_ensemble", transport=transport).run(png(), "od", timeout=2.5)
    model, _, timeout = transport.asked[0]
    assert model == "mine_ensemble"
    assert timeout == pytest.approx(2.5, abs=0.1)


OTHER_METHODS = ("run", "ask", "caption_regions", "run_many", "stream", "close")


def task_methods():
    """name -> what to call it with, of every method of the client that asks one task."""
    return {
        name: [
            (1, 2, 3, 4) if name == "region" else "words" for name in list(inspect.signature(method).parameters)[2:-1]
        ]
        for name, method in inspect.getmembers(Client, inspect.isfunction)
        if not name.startswith("_") and name not in OTHER_METHODS
    }


def test_every_task_has_one_method():
    """All fifteen tasks can be asked by a method of their own, and the method's docstring names the task."""
    asked = {}
    for name, arguments in task_methods().items():
        transport = FakeTransport()
        getattr(Client(transport=transport), name)(png(), *arguments, num_beams=1)
        tensors = transport.asked[0][1]
        asked[tensors["TASK"][0].decode()] = name
        assert ("TEXT" in tensors) == bool(arguments)
        assert tensors["NUM_BEAMS"].tolist() == [1]
        assert f"`{tensors['TASK'][0].decode()}`" in inspect.getdoc(getattr(Client, name)).splitlines()[0]
    assert set(asked) == set(TASKS) and len(task_methods()) == len(TASKS)


def test_both_clients_have_one_interface():
    """The asyncio client has the same methods with the same parameters, and puts the same tensors on the wire."""
    for name, arguments in task_methods().items():
        transport, other = FakeTransport(), AsyncFakeTransport()
        result = getattr(Client(transport=transport), name)(png(), *arguments)
        assert asyncio.run(getattr(AsyncClient(transport=other), name)(png(), *arguments)) == result
        assert other.asked == transport.asked
    for name in (*OTHER_METHODS, "__init__"):
        parameters = [list(inspect.signature(getattr(kind, name)).parameters) for kind in (Client, AsyncClient)]
        assert parameters[0] == parameters[1]


def test_unknown_option_is_a_type_error():
    """A misspelt option is not silently left out."""
    with pytest.raises(TypeError, match="num_beam"):
        Client(transport=FakeTransport()).caption(png(), num_beam=1)


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


def test_result_survives_json():
    """A result written as JSON and read again is the same result."""
    result = Client(transport=FakeTransport()).run(png(), "od")
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    with pytest.raises(InternalError):
        Result.from_dict({"task": "<OD>", "answer": "text"})


def test_client_closes_its_transport_once():
    """Leaving the `with` block closes the connections, closing again is harmless, asking again is an error."""
    transport = FakeTransport()
    with Client(transport=transport) as client:
        client.run(png(), "od")
    client.close()
    assert transport.closed == 1
    with pytest.raises(RuntimeError):
        client.run(png(), "od")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("grpc://127.0.0.1:9001", Address("grpc", "127.0.0.1", 9001, "")),
        ("gpu-box:9001", Address("grpc", "gpu-box", 9001, "")),
        ("gpu-box", Address("grpc", "gpu-box", 8001, "")),
        (" grpc://gpu-box:9001\n", Address("grpc", "gpu-box", 9001, "")),
        ("http://gpu-box", Address("http", "gpu-box", 8000, "")),
        ("https://vision.example/triton/", Address("https", "vision.example", 443, "/triton")),
        ("GRPCS://Box:1", Address("grpcs", "box", 1, "")),
        ("grpc://[::1]:8001", Address("grpc", "[::1]", 8001, "")),
        ("grpc://10.0.0.1,10.0.0.2:81", Address("grpc", "10.0.0.1", 8001, "", others=("10.0.0.2:81",))),
    ],
)
def test_url_says_protocol_host_and_port(url, address):
    """The scheme chooses the transport; without one it is gRPC; ports have Triton's defaults."""
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "ftp://x",
        "grpc://",
        "http://",
        "http://:8000",
        "grpc://x:99999",
        "grpc://x:0",
        "http://x:port",
        "grpc://x/path",
        "http://x?y=1",
        "http://x#y",
        "http://[::1",
        "http://me:secret@x",
        "http://:secret@x",
        "grpc://a b",
        "grpc://a..b",
        "http://" + "a" * 64,
    ],
)
def test_bad_url_is_an_invalid_request(url):
    """An address that cannot be meant is refused with an example of a good one."""
    with pytest.raises(InvalidRequest, match=r"grpc://127\.0\.0\.1:8001"):
        Client(url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1,10.0.0.2:80", "grpc://a,b:1", "grpc://10.0.0.1,", "10.0.0.1,10.0.0.2:x"]
)
def test_several_servers_are_named_by_address_for_grpc(url):
    """Only gRPC accepts a list of addresses; HTTP connects to one."""
    with pytest.raises(InvalidRequest, match="several servers"):
        Client(url)


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"": "c"}, {"a": "b\r\nc: d"}, {"a": "ü"}])
def test_bad_header_is_an_invalid_request(headers):
    """What no header can hold, such as a line break, is refused before anything is sent."""
    with pytest.raises(InvalidRequest, match="is not a header"):
        Client(headers=headers)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding"])
def test_a_header_that_would_cut_requests_is_refused(name):
    with pytest.raises(InvalidRequest, match="is set for each request"):
        Client(headers={name: "5"})


@pytest.mark.parametrize("seconds", [float("nan"), -1, "5", None])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_time_to_retry_for_is_a_number(kind, seconds):
    """NaN would retry without end."""
    with pytest.raises(InvalidOption, match="retry_for must be a number of seconds"):
        kind(retry_for=seconds)
    kind(retry_for=float("inf"), transport=FakeTransport())


def test_tls_files_are_checked_at_once(tmp_path):
    """A missing file is named when the client is made, and TLS for a URL without it is a mistake too."""
    with pytest.raises(InvalidRequest, match=r"there is no file .*missing.pem"):
        Client("https://box", tls=Tls(ca=tmp_path / "missing.pem"))
    with pytest.raises(InvalidRequest, match="use grpcs://"):
        Client("grpc://box", tls=Tls(ca=tmp_path / "missing.pem"))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("NOT_FOUND", ModelNotFound),
        ("UNAVAILABLE", Unavailable),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("CANCELLED", Cancelled),
        ("INTERNAL", InternalError),
        ("DATA_LOSS", InternalError),
    ],
)
def test_status_becomes_our_exception(status, error):
    """Every status of Triton has its place in the exception tree."""
    from florence2_client.transports.errors import server_error

    assert type(server_error(status, "in ensemble 'florence2_ensemble', too bad")) is error


def test_model_that_is_loading_may_come():
    """A restarted server knows a model before it can ask it: that is worth asking again, an unknown name is not."""
    from florence2_client.transports.errors import server_error

    loading = "Request for unknown model: 'florence2_ensemble' has no available versions"
    assert type(server_error("NOT_FOUND", loading)) is Unavailable
    assert type(server_error("NOT_FOUND", "Request for unknown model: 'x' is not found")) is ModelNotFound


@pytest.mark.parametrize(
    "message",
    [
        "too bad",
        "in ensemble 'florence2_ensemble', too bad",
        "in ensemble 'a', in ensemble 'b', too bad",
        "[request id: <id_unknown>] too bad",
        "in ensemble 'a', Failed to process the request(s) for model 'b_0_0', message: too bad\n\nAt:\n  /model.py(3)",
    ],
)
def test_message_is_stripped_to_its_sentence(message):
    """Names of models on the way, and tracebacks, are not for users."""
    from florence2_client.transports.errors import server_error

    assert str(server_error("INTERNAL", message)) == "too bad"


@pytest.mark.parametrize("status", [None, "INTERNAL", "INVALID_ARGUMENT", "UNAVAILABLE"])
@pytest.mark.parametrize("code", SERVER_CODES)
@pytest.mark.parametrize("prefix", ["", "in ensemble 'a', Failed to process the request(s) for model 'b', message: "])
def test_the_code_decides_and_not_the_status_or_the_sentence(prefix, code, status):
    """In a stream as well as outside, and although the sentence sounds like another error."""
    from florence2_client.transports.errors import server_error

    error = server_error(status, f"{prefix}{code}: the queue is full, unknown model, Stub process\n\nAt:\n  /model.py")
    assert (type(error), error.code) == (ERROR_CODES[code], code)
    assert str(error) == "the queue is full, unknown model, Stub process"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Request for unknown model: 'florence2_stream' is not found", ModelNotFound),
        ("Request for unknown model: 'florence2_stream' has no available versions", Unavailable),
        ("in ensemble 'florence2_stream', 'florence2_vision' version 1 is not at ready state", Unavailable),
        ("in ensemble 'a', Stub process 'florence2_vision_0_0' is not healthy.", InternalError),
        ("something that Triton never said before", InternalError),
    ],
)
def test_a_streams_error_without_a_code_is_tritons_own(message, kind):
    """A crash on the server is not the client's mistake."""
    from florence2_client.transports.errors import server_error

    assert type(server_error(None, message)) is kind


def test_connection_failure_names_address_and_remedy():
    """The error asks whether the server was started."""
    from florence2_client.transports.errors import connection_failed

    error = connection_failed(parse_url("http://box:8000"), ConnectionRefusedError(111, "Connection refused"))
    assert isinstance(error, ConnectionFailed)
    assert str(error) == (
        "no answer from http://box:8000 (connection refused); is the server running? Start it with `florence2 serve`"
    )
