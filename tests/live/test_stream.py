"""Streams on the real server: the last response is the ensemble's answer, and no stream harms another."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import queue
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from florence2.errors import DeadlineExceeded, InvalidImage, InvalidOption, InvalidPrompt, ModelNotFound
from florence2.tasks import TASKS
from florence2_client import AsyncClient, Client, Result
from tests.live.plain_requests import SEEDS, TYPES, ask, examples, png, scene_image, tensor
from tests.live.test_decoder import metrics

DECODER = "florence2_decoder_stream"
LONG = "<MORE_DETAILED_CAPTION>"
IMAGE = png(scene_image(SEEDS[0]))


@contextlib.contextmanager
def grpc_stream(server, model, inputs, **options):
    """The responses of one request by plain tritonclient, as an iterator of InferResults. Raises their errors."""
    arrivals: queue.SimpleQueue = queue.SimpleQueue()

    def responses():
        final = False
        while not final:
            result, error = arrivals.get(timeout=60)
            if error:
                raise error
            final = result.get_response().parameters["triton_final_response"].bool_param
            yield result

    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        client.start_stream(lambda result, error: arrivals.put((result, error)))
        client.async_stream_infer(model, inputs, **options)
        yield responses()
        client.stop_stream(cancel_requests=True)


def question(image, task, text=None, **options):
    inputs = [tensor("IMAGE", image, "BYTES"), tensor("TASK", task, "BYTES")]
    inputs += [tensor("TEXT", text, "BYTES")] if text is not None else []
    return inputs + [tensor(name, value, TYPES[name]) for name, value in options.items()]


def outputs(result):
    names = [output.name for output in result.get_response().outputs]
    return {name: result.as_numpy(name)[0 if name != "IMAGE_SIZE" else slice(None)] for name in names}


def streamed(server, *asked, **options):
    """All responses to a request, each as a dict."""
    with grpc_stream(server, "florence2_stream", question(*asked, **options)) as responses:
        return [outputs(result) for result in responses]


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


def text(answer):
    """What does not depend on who else is in the batch: the last digits of scores do."""
    return answer["GENERATED_TEXT"], answer["FINISH_REASON"]


def begins_with(whole, part):
    """Whether the answer so far is a beginning of the whole: each list's items stay what they are."""
    if isinstance(whole, str):
        return whole.startswith(part)
    return all(value == whole[key][: len(value)] for key, value in part.items())


@pytest.mark.parametrize("token", TASKS)
def test_the_last_response_is_the_ensembles_answer(server, token):
    """In every output, for every task; those before it are unfinished beginnings of it."""
    asked = (IMAGE, token, examples(SEEDS[0])[token].input)
    *before, last = streamed(server, *asked)
    assert same(last, ask(server, *asked, NUM_BEAMS=1))
    assert last["FINISH_REASON"] == b"stop"
    assert before or last["NUM_TOKENS"] < 20, "a short answer may be complete before its beginning has left"
    counts = [so_far["NUM_TOKENS"] for so_far in (*before, last)]
    assert counts == sorted(set(counts)), "one after the other"
    [answer] = json.loads(last["RESULT"]).values()
    for so_far in before:
        assert so_far["FINISH_REASON"] == b""
        assert last["GENERATED_TEXT"].startswith(so_far["GENERATED_TEXT"])
        assert "polygons" in answer or begins_with(answer, *json.loads(so_far["RESULT"]).values())


def test_a_cut_answer_ends_with_length(server):
    """Options mean what they mean without a stream."""
    last = streamed(server, IMAGE, LONG, MAX_NEW_TOKENS=9, NO_REPEAT_NGRAM_SIZE=0)[-1]
    assert same(last, ask(server, IMAGE, LONG, NUM_BEAMS=1, MAX_NEW_TOKENS=9, NO_REPEAT_NGRAM_SIZE=0))
    assert last["FINISH_REASON"] == b"length"


def test_generate_stream_sends_events(server):
    """HTTP: the same responses as JSON."""
    body = json.dumps({"IMAGE": base64.b64encode(IMAGE).decode(), "TASK": LONG}).encode()
    url = f"{server.http_url}/v2/models/florence2_stream/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Connection": "close"}), timeout=60) as response:
        events = [json.loads(line.removeprefix(b"data:")) for line in response if line.startswith(b"data:")]
    assert len(events) > 1 and [event["FINISH_REASON"] for event in events] == [""] * (len(events) - 1) + ["stop"]
    assert events[-1]["RESULT"].encode() == ask(server, IMAGE, LONG, NUM_BEAMS=1)["RESULT"]


def test_a_seed_draws_one_answer_over_every_protocol(server):
    """Streamed or not, next to other requests, as an INT64 tensor or as a JSON number; another seed draws another."""
    options = dict(TEMPERATURE=3.0, TOP_K=0, SEED=2**63 - 1, MAX_NEW_TOKENS=30)
    body = json.dumps({"IMAGE": base64.b64encode(IMAGE).decode(), "TASK": LONG, **options}).encode()
    with ThreadPoolExecutor(4) as pool:
        other = pool.submit(ask, server, IMAGE, LONG, **{**options, "SEED": 1})
        beams = pool.submit(ask, server, IMAGE, LONG)
        drawn = [pool.submit(ask, server, IMAGE, LONG, **options) for _ in range(3)]
        texts = {each.result()["GENERATED_TEXT"].decode() for each in drawn}
    texts.add(streamed(server, IMAGE, LONG, **options)[-1]["GENERATED_TEXT"].decode())
    for model in ("florence2_ensemble", "florence2_stream"):
        url = f"{server.http_url}/v2/models/{model}/{'generate' if model.endswith('ensemble') else 'generate_stream'}"
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Connection": "close"}), timeout=60) as response:
            texts.add(json.loads(response.read().decode().split("data:")[-1])["GENERATED_TEXT"])
    assert len(texts) == 1
    assert not texts & {other.result()["GENERATED_TEXT"].decode(), beams.result()["GENERATED_TEXT"].decode()}


def test_a_stream_counts_once(server):
    """However many responses it has; and its tokens once."""
    before = metrics(server, DECODER)
    responses = streamed(server, IMAGE, LONG)
    after = metrics(server, DECODER)
    grown = {line: after[line] - before.get(line, 0) for line in after}
    assert grown['florence2_requests_total{outcome="stop",task="more_detailed_caption"}'] == 1
    assert grown['florence2_generated_tokens_total{task="more_detailed_caption"}'] == responses[-1]["NUM_TOKENS"]


def test_a_client_that_hangs_up_costs_other_requests_nothing(server):
    """Triton tells an ensemble nothing of it; the row is free when the answer is complete, and the server serves on."""
    with grpc_stream(server, "florence2_stream", question(IMAGE, LONG)) as responses:
        next(responses)
    after = metrics(server, DECODER)
    assert after["florence2_live_requests"] == after["florence2_live_rows"] == after["florence2_waiting_requests"] == 0
    assert streamed(server, IMAGE, "<OD>")[-1]["FINISH_REASON"] == b"stop"


def test_twenty_streams_among_ordinary_requests_have_their_own_answers(server):
    """A third of them leave early or are broken; there are more than the streaming decoder has rows, so some wait."""
    images = [png(scene_image(seed)) for seed in SEEDS]
    tasks = ("<OD>", LONG)
    expected = {(i, task): text(ask(server, images[i], task, NUM_BEAMS=1)) for i in (0, 1) for task in tasks}

    def run(number):
        place, task, kind = number % 2, tasks[number // 2 % 2], number % 6
        if kind == 1:
            return text(ask(server, images[place], task, NUM_BEAMS=1)) == expected[place, task]
        if kind == 3:
            with grpc_stream(server, "florence2_stream", question(images[place], task)) as responses:
                return next(responses) is not None
        if kind == 5:
            with pytest.raises(triton.InferenceServerException, match="INVALID_IMAGE"):
                streamed(server, b"\x89PNG junk", task)
            return True
        return text(streamed(server, images[place], task)[-1]) == expected[place, task]

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(run, range(36)))


def test_a_slow_reader_delays_no_other_request(server):
    """Who reads nothing for a while still gets the end, and others meanwhile all of theirs."""
    with grpc_stream(server, "florence2_stream", question(IMAGE, LONG)) as responses:
        next(responses)
        for _ in range(3):
            assert streamed(server, IMAGE, "<OD>")[-1]["FINISH_REASON"] == b"stop"
        assert outputs(list(responses)[-1])["FINISH_REASON"] == b"stop"


@pytest.fixture(params=["grpc", "http"])
def url(request, server):
    return getattr(server, f"{request.param}_url")


def collect(url, *asked, model="florence2_ensemble", **options) -> list[Result]:
    with Client(url, model, retry_for=0) as client:
        return list(client.stream(*asked, **options))


def collect_async(url, *asked, model="florence2_ensemble", **options) -> list[Result]:
    async def main():
        async with AsyncClient(url, model, retry_for=0) as client:
            return [result async for result in client.stream(*asked, **options)]

    return asyncio.run(main())


both = pytest.mark.parametrize("collected", [collect, collect_async])


@both
def test_the_client_yields_results_up_to_the_final_one(url, collected):
    """Each is typed like any result; the last is what `run` gives, also in pixels of an image that was scaled down."""
    results = collected(url, IMAGE, LONG)
    assert len(results) > 1 and [result.final for result in results] == [False] * (len(results) - 1) + [True]
    with Client(url) as client:
        assert results[-1] == client.run(IMAGE, LONG, num_beams=1)
        small = client.run(IMAGE, "od", num_beams=1, max_side=200)
    assert collected(url, IMAGE, "od", max_side=200)[-1] == small


ERRORS = {
    "image": ((b"junk", "od"), {}, InvalidImage, "the image (is damaged|cannot be read)"),
    "text": ((IMAGE, "od", "superfluous"), {}, InvalidPrompt, "<OD> takes no text"),
    "beams": ((IMAGE, "od"), {"num_beams": 3}, InvalidOption, "a streamed answer has one beam"),
    "infinity": ((IMAGE, "od"), {"length_penalty": float("inf")}, InvalidOption, "LENGTH_PENALTY must be|not a finite"),
    "deadline": ((IMAGE, LONG), {"timeout": 0.001}, DeadlineExceeded, "no answer within 0.001|time limit"),
    "model": ((IMAGE, "od"), {"model": "other_ensemble"}, ModelNotFound, "no model other_stream, so"),
}


@both
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_ends_the_stream_with_its_sentence(url, collected, error):
    """The exception is the one that a request without a stream raises, over both protocols."""
    asked, options, kind, sentence = ERRORS[error]
    with pytest.raises(kind, match=sentence) as caught:
        collected(url, *asked, **options)
    assert "ensemble" not in str(caught.value)


def test_closing_the_iterator_gives_the_request_up(url):
    """And the client serves on."""
    with Client(url) as client:
        results = client.stream(IMAGE, LONG)
        assert not next(results).final
        results.close()
        assert client.caption(IMAGE, num_beams=1).final


def test_a_task_of_asyncio_can_be_cancelled(url):
    """In the middle of a stream."""

    async def main():
        async with AsyncClient(url) as client:
            started = asyncio.Event()

            async def follow():
                async for _result in client.stream(IMAGE, LONG):
                    started.set()
                    await asyncio.sleep(60)

            task = asyncio.create_task(follow())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await client.caption(IMAGE, num_beams=1)

    assert asyncio.run(main()).final


def test_the_command_line_follows(server, tmp_path):
    """It prints text for people, piece by piece, or JSON lines."""
    (tmp_path / "scene.png").write_bytes(IMAGE)
    command = [
        str(Path(sys.executable).with_name("florence2")),
        "run",
        "scene.png",
        "--stream",
        "--url",
        server.grpc_url,
    ]

    def run(*more):
        done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    text = json.loads(ask(server, IMAGE, "<CAPTION>", NUM_BEAMS=1)["RESULT"])["<CAPTION>"]
    assert run("--task", "caption", "--no-json")[0] == text
    lines = [json.loads(line) for line in run("--task", "more_detailed_caption", "--json")]
    assert len(lines) > 1 and lines[-1]["finish_reason"] == "stop"
