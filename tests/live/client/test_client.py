"""The client against the real embedded server, over gRPC and over HTTP."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from florence2.answers import Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.errors import ConnectionFailed, DeadlineExceeded, InvalidRequest
from florence2.tasks import TASKS, Grammar, Task, TaskInput
from florence2_client import Client, UnmarkedPrompt, cli

SIZE = (320, 240)
KINDS = {
    Grammar.TEXT: TextAnswer,
    Grammar.OCR: Quads,
    Grammar.LABELED_BOXES: Boxes,
    Grammar.BARE_BOXES: Boxes,
    Grammar.GROUNDING: Boxes,
    Grammar.POLYGONS: Polygons,
    Grammar.BOXES_OR_POLYGONS: BoxesAndPolygons,
}
TEXTS = {TaskInput.NONE: None, TaskInput.TEXT: "a red circle", TaskInput.REGION: "60,40,260,200"}


@pytest.fixture(params=["grpc", "http"])
def url(request, server):
    return getattr(server, f"{request.param}_url")


@pytest.fixture
def client(url):
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def image():
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).ellipse((60, 40, 260, 200), fill="red")
    return image


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_a_typed_answer(client: Client, image, task: Task):
    """Each task answers with its own kind, about an image of the size that was sent."""
    result = client.run(image, task.name, TEXTS[task.input], num_beams=1)
    assert result.task == task.token
    assert type(result.answer) is KINDS[task.grammar]
    assert result.image_size == SIZE
    assert result.finish_reason in ("stop", "length")
    assert result.num_tokens >= 1
    assert np.isfinite(result.score)


def test_image_may_come_in_any_form(client: Client, image, tmp_path):
    """A path, bytes, a PIL image and an array of the same image have the same answer."""
    path = tmp_path / "image.png"
    image.save(path)
    forms = [path, path.read_bytes(), image, np.asarray(image)]
    results = [client.run(form, "od") for form in forms]
    assert all(result == results[0] for result in results)


def test_protocols_agree(server, image):
    """gRPC and HTTP give the same answer to the last digit."""
    with Client(server.grpc_url) as over_grpc, Client(server.http_url) as over_http:
        assert over_grpc.run(image, "od") == over_http.run(image, "od")


def test_options_reach_the_decoder(client: Client, image):
    """A limit of one token is kept and reported."""
    result = client.run(image, "caption", max_new_tokens=1, num_beams=1)
    assert (result.num_tokens, result.finish_reason) == (1, "length")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": b"no image"}, "image"),
        ({"text": "a dog"}, "text"),
        ({"task": "region_to_category"}, "region"),
        ({"num_beams": 1000}, "NUM_BEAMS"),
        ({"length_penalty": float("nan")}, "LENGTH_PENALTY"),
    ],
)
def test_mistake_is_named_in_the_servers_own_words(client: Client, image, change, named):
    """The error is the sentence that names the mistake, without Triton's wrapping."""
    with pytest.raises(InvalidRequest, match=f"(?i){named}") as caught:
        client.run(**{"image": image, "task": "od"} | change)
    assert "ensemble" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_model_is_an_invalid_request(url, image):
    """Asking for a model that is not served says so."""
    with Client(url, model="missing_ensemble") as client, pytest.raises(InvalidRequest, match="missing_ensemble"):
        client.run(image, "od")


def test_time_limit_is_kept_and_affects_only_its_request(client: Client, image):
    """A request that cannot be done in time ends with DeadlineExceeded; the next one is answered."""
    with pytest.raises(DeadlineExceeded):
        client.run(image, "od", timeout=0.001)
    assert client.run(image, "od", timeout=60).num_tokens >= 1


def test_command_line_asks_the_server(url, image, tmp_path, capsys):
    """`florence2 run` prints the answer and writes the drawing."""
    path, drawn = tmp_path / "image.png", tmp_path / "drawn.png"
    image.save(path)
    assert cli.main(["run", str(path), "--task", "od", "--no-json", "--url", url, "--draw", str(drawn)]) == 0
    assert "image 320x240" in capsys.readouterr().out
    assert Image.open(io.BytesIO(drawn.read_bytes())).width >= SIZE[0]


def test_bench_measures_the_server(url, image, tmp_path, capsys):
    """`florence2 bench` reports a line per concurrency, whose numbers fit together."""
    path = tmp_path / "image.png"
    image.save(path)
    asked = ["bench", str(path), "--task", "caption", "--max-new-tokens", "1", "--num-beams", "1"]
    assert cli.main([*asked, "--seconds", "0.5", "--concurrency", "1,3", "--url", url]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["concurrency"] for line in lines] == [1, 3]
    for line in lines:
        assert line["answered"] >= 1 and line["failed"] == 0
        assert line["requests_per_second"] == pytest.approx(line["answered"] / line["seconds"], rel=0.01)
        assert 0 < line["milliseconds"]["p50"] <= line["milliseconds"]["p99"] <= line["milliseconds"]["max"]
    assert cli.main([*asked, "--seconds", "0.2", "--concurrency", "1", "--url", url, "--no-json"]) == 0
    assert capsys.readouterr().out.startswith("in flight  answered")


def test_wrong_ports_and_protocols_are_named(server, image):
    """The ports of a real Triton: each URL that does not fit is told apart, and the right one is named."""
    grpc_port, http_port, metrics_port = server.grpc_url[7:], server.http_url[7:], server.metrics_url[7:].split("/")[0]
    for url, sentence in [
        (f"grpc://{http_port}", f"use http://{http_port}"),
        (f"http://{grpc_port}", f"use grpc://{grpc_port}"),
        (f"grpcs://{grpc_port}", f"that port does not use TLS; use grpc://{grpc_port}"),
        (f"https://{http_port}", f"that port does not use TLS; use http://{http_port}"),
        (f"http://{metrics_port}", "that is the port of Triton's metrics"),
        (f"grpc://{metrics_port}", "that is the port of Triton's metrics"),
        (f"http://{http_port}/florence", f"Triton answers there, but not below /florence; use http://{http_port}"),
    ]:
        with Client(url, retry_for=0) as wrong, pytest.raises(ConnectionFailed, match=re.escape(sentence)):
            wrong.run(image, "od", timeout=20)


def test_tasks_are_read_by_one_rule(client: Client, image):
    """Names in any spelling and a fine-tune's tokens are answered; a misspelled name is not sent."""
    assert client.run(image, "Detailed caption", num_beams=1).task == "<DETAILED_CAPTION>"
    assert client.run(image, "detect", num_beams=1).task == "<OD>"
    assert client.run(image, "<GENERATE_TAGS>", max_new_tokens=2, num_beams=1).task == "<GENERATE_TAGS>"
    with pytest.raises(InvalidRequest, match="did you mean caption"):
        client.run(image, "captoin")
    with pytest.warns(UnmarkedPrompt):
        client.run(image, "What is the text?", max_new_tokens=2, num_beams=1)


def test_the_servers_words_name_the_format(client: Client):
    """An HTML page or a video with the name of an image is called what it is."""
    for data, kind in [(b"<!doctype html><html>", "an HTML page"), (b"RIFF\0\0\0\0AVI LIST", "a video")]:
        with pytest.raises(InvalidRequest, match=kind):
            client.run(data, "od")
