"""The routes of the gateway in front of a fake model."""

from __future__ import annotations

import asyncio
import base64
import json
import logging

import pytest

from florence2.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    InvalidImage,
    InvalidOption,
    ModelNotFound,
    QueueFull,
    Unavailable,
)
from florence2_client.cli.health import Health
from florence2_client.gateway import app as app_module
from florence2_client.gateway.access import Limits
from florence2_client.gateway.app import GatewayOptions, make_app

URL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nimage").decode()


@pytest.fixture(autouse=True)
def caption(model):
    model.answers = {"<CAPTION>": "a dog, sleeping"}
    model.parts = [("a", ""), ("a dog", ""), ("a dog, sleeping", "stop")]


def body(text="caption", url=URL, **more):
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": "florence2", "messages": [{"role": "user", "content": content}], **more}


def send(client, *args, headers=None, **options):
    content = json.dumps(body(*args, **options))  # ASCII, which can hold half a surrogate pair
    return client.post(
        "/v1/chat/completions", content=content, headers={"Content-Type": "application/json", **(headers or {})}
    )


def test_an_answer_has_the_form_of_openai(open_gateway, model):
    client = open_gateway()
    answer = send(client, max_tokens=9, num_beams=1).json()
    assert answer["object"] == "chat.completion" and answer["model"] == "florence2"
    assert answer["choices"][0]["message"]["content"] == "a dog, sleeping"
    assert answer["usage"] == {"prompt_tokens": 590, "completion_tokens": 7, "total_tokens": 597}
    name, tensors = model.sent[0]
    assert name == "florence2_ensemble" and tensors["IMAGE"] == b"\x89PNG\r\n\x1a\nimage"
    assert tensors["TASK"] == b"<CAPTION>" and tensors["MAX_NEW_TOKENS"] == 9 and tensors["NUM_BEAMS"] == 1


def test_models_are_listed_and_others_refused(open_gateway, model):
    client = open_gateway(models=("florence2_ensemble", "large_ensemble"))
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["florence2", "large"]
    send(client, model="large")
    send(client, model="large_ensemble")
    assert [name for name, _ in model.sent] == ["large_ensemble", "large_ensemble"]
    refused = send(client, model="gpt-4o\ud800")
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidImage("the image is damaged"), 400, "invalid_request_error"),
        (InvalidOption("NUM_BEAMS must be at most 3"), 400, "invalid_request_error"),
        (ModelNotFound("there is none"), 404, "invalid_request_error"),
        (QueueFull("the queue is full"), 429, "rate_limit_error"),
        (Unavailable("the model is loading"), 503, "server_error"),
        (ConnectionFailed("no server answers"), 503, "server_error"),
        (DeadlineExceeded("too late"), 504, "server_error"),
        (InternalError("the server failed"), 500, "server_error"),
        (RuntimeError("a bug with a secret"), 500, "server_error"),
    ],
)
def test_errors_have_the_form_of_openai(open_gateway, model, error, status, kind, caplog):
    caplog.set_level(logging.CRITICAL)
    client = open_gateway()
    model.answers = {"<CAPTION>": error}
    answer = send(client)
    found = answer.json()["error"]
    assert answer.status_code == status and found["type"] == kind
    assert found["code"] == getattr(error, "code", "INTERNAL")
    assert "secret" not in answer.text and "NUM_BEAMS" not in found["message"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert json.loads(client.lines[-1])["error"] == found["code"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"), (b"", "object"), (b"[]", "object"), (b'{"model": "m"}', "messages"),
        (b'{"model": "m", "messages": []}', "messages"), (b'{"model": 1, "messages": [{"role": "user"}]}', "model"),
        (b"[" * 100_000, "body"), (b"\xff\xfe", "body"),
    ],
)  # fmt: skip
def test_a_malformed_body_is_named(open_gateway, content, words):
    answer = open_gateway().post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "INVALID_REQUEST" and words in answer.json()["error"]["message"]


NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999")


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("v1/chat/completions", '{"model": "m", "messages": [{"role": "user"}], "temperature": NUMBER}'),
        ("v1/chat/completions", '{"model": "m", "messages": [{"role": "user"}], "metadata": {"a": [NUMBER]}}'),
        ("x-anylabeling/v1/predict", '{"model": "m", "image": "", "params": {"conf_threshold": NUMBER}}'),
        ("x-anylabeling/v1/predict", '{"model": "m", "image": "", "params": {"marks": [{"data": [1, 2, NUMBER, 4]}]}}'),
        ("label-studio/predict", '{"tasks": [{"data": {"a": NUMBER}}], "label_config": ""}'),
        ("label-studio/predict",
         '{"tasks": [], "label_config": "", "params": {"context": {"result": [{"value": {"x": NUMBER}}]}}}'),
    ],
)  # fmt: skip
def test_a_number_that_json_does_not_have_is_refused(open_gateway, model, path, content, number):
    """Comparisons with NaN are false, so that it would leave out everything; and no answer could repeat it."""
    headers = {"Content-Type": "application/json"}
    answer = open_gateway().post(f"/{path}", content=content.replace("NUMBER", number), headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert "not finite" in answer.json()["error"]["message"] and not model.sent


def test_a_text_is_no_number_that_is_not_finite(open_gateway, model):
    error = send(open_gateway(), temperature="nan").json()["error"]
    assert error["param"] == "temperature" and "finite number" in error["message"] and not model.sent


def test_the_field_with_the_mistake_is_the_param(open_gateway):
    error = send(open_gateway(), max_tokens="many").json()["error"]
    assert error["param"] == "max_tokens" and error["message"].startswith("max_tokens: ")


@pytest.mark.parametrize("url", ["https://example.com/a.png", "file:///etc/passwd", "/etc/passwd", "README.md"])
def test_no_other_url_reaches_the_client_library(open_gateway, model, url):
    """It would read files and fetch whatever it is given."""
    answer = send(open_gateway(), url=url)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "INVALID_IMAGE" and not model.sent


def test_errors_of_other_routes_and_methods_have_the_same_form(open_gateway):
    client = open_gateway()
    assert client.get("/v1/completions").json()["error"]["code"] == "NOT_FOUND"
    assert client.get("/v1/chat/completions").json()["error"]["code"] == "METHOD_NOT_ALLOWED"


def events(answer):
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_stream_has_the_form_of_openai(open_gateway, model):
    chunks = events(send(open_gateway(), stream=True, stream_options={"include_usage": True}))
    assert model.sent[0][0] == "florence2_stream"
    contents = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]]
    assert contents == ["", "a", " dog", ", sleeping", None]
    assert chunks[-1]["usage"]["completion_tokens"] == 7


def test_a_stream_that_fails_before_it_begins_has_a_status(open_gateway, model):
    model.parts = [(ModelNotFound("unknown model"), "")]
    refused = send(open_gateway(), stream=True)
    assert refused.status_code == 404 and "florence2 serve --stream" in refused.json()["error"]["message"]


def test_a_stream_that_fails_later_ends_with_the_error(open_gateway, model):
    model.parts = [("a", ""), (InternalError("the server failed"), "")]
    client = open_gateway()
    chunks = events(send(client, stream=True))
    assert chunks[-1]["error"]["code"] == "INTERNAL"
    assert json.loads(client.lines[-1])["error"] == "INTERNAL"


def test_a_client_that_leaves_cancels_its_request(model):
    """The app runs in an event loop of the test, because TestClient cannot disconnect."""
    app = make_app(GatewayOptions(), None)
    content = json.dumps(body()).encode()
    cancelled = []

    async def infer(name, tensors, timeout):
        model.receive(name, tensors)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    model.infer = infer

    async def scenario():
        arrivals = asyncio.Queue()
        await arrivals.put({"type": "http.request", "body": content, "more_body": False})
        sent = []

        async def send_message(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "client": ("1.2.3.4", 5), "http_version": "1.1",
            "scheme": "http", "server": ("127.0.0.1", 80), "root_path": "",
        }  # fmt: skip
        async with app.router.lifespan_context(app):
            call = asyncio.create_task(app(scope, arrivals.get, send_message))
            while not model.sent:
                await asyncio.sleep(0)
            await arrivals.put({"type": "http.disconnect"})
            await call
        return sent

    assert asyncio.run(scenario())[0]["status"] == 499
    assert cancelled == ["florence2_ensemble"]


def test_trace_context_goes_on_to_the_server(open_gateway, model):
    client = open_gateway()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    send(client, headers={"traceparent": trace, "tracestate": "vendor=1"})
    send(client, headers={"traceparent": "nonsense"})
    assert model.headers == [{"traceparent": trace, "tracestate": "vendor=1"}, {}]
    assert json.loads(client.lines[0])["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_the_log_and_the_metrics_hold_no_content(open_gateway, model):
    client = open_gateway(keys=("secret-key",))
    key = {"Authorization": "Bearer secret-key"}
    prompts = ("<OPEN_VOCABULARY_DETECTION>my secret", "a prompt of my own about a secret")
    model.answers = dict.fromkeys(prompts, "words")
    for prompt in prompts:
        send(client, prompt, headers=key)
    send(client)
    first, second, third = map(json.loads, client.lines)
    assert first["task"] == "<OPEN_VOCABULARY_DETECTION>" and second["task"] == "other"
    assert first["client"] != third.get("client") and third["status"] == 401
    assert first["prompt"] == 590 and first["completion"] == 7
    assert client.get("/metrics").status_code == 401
    page = client.get("/metrics", headers=key).text
    assert 'florence2_gateway_tokens_total{kind="prompt"} 1180.0' in page
    refused = 'florence2_gateway_requests_total{error="INVALID_API_KEY",route="/v1/chat/completions",status="401"} 1.0'
    assert refused in page
    assert "secret" not in page + "".join(client.lines)


def test_browsers_may_send_requests_from_listed_origins_only(open_gateway):
    client = open_gateway(origins=("https://example.com",), keys=("secret",))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = client.options("/v1/chat/completions", headers={"Origin": "https://example.com", **asked})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://example.com"
    other = client.options("/v1/chat/completions", headers={"Origin": "https://evil.test", **asked})
    assert "access-control-allow-origin" not in other.headers
    refused = send(client, headers={"Origin": "https://example.com"})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://example.com"


def test_health_probes_once_in_a_while(open_gateway, monkeypatch):
    found = [Health(True, "alive"), Health(False, "a process is dead")]
    monkeypatch.setattr(app_module, "check_health", lambda *args, **options: found.pop(0))
    client = open_gateway(keys=("secret",))
    assert [client.get("/health").status_code for _ in range(3)] == [200, 200, 200] and len(found) == 1
    monkeypatch.setattr(app_module, "HEALTH_AGE", 0.0)
    answer = client.get("/health")
    assert answer.status_code == 503 and "dead" in answer.text


def test_a_large_request_is_refused_in_the_same_form(open_gateway):
    refused = send(open_gateway(limits=Limits(body_bytes=1000)), "caption" * 1000)
    assert refused.status_code == 413 and refused.json()["error"]["code"] == "REQUEST_TOO_LARGE"


def test_the_description_has_every_option(open_gateway):
    client = open_gateway()
    schema = client.get("/openapi.json").json()["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"num_beams", "max_tokens", "messages", "stream"} <= set(schema)
    page = client.get("/docs").text
    assert "https://" not in page  # nothing comes from the internet
