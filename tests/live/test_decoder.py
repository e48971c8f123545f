"""The decoder on the real server: its metrics add up, and bad or cancelled requests harm no other request."""

from __future__ import annotations

import re
import threading
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from florence2.engine.metrics import METRICS
from tests.live.plain_requests import SEEDS, ask, call, png, refused, scene_image

MODEL = "florence2_decoder"
TOKENS, WIDTH = 37, 128  # the bundled checkpoint's image tokens and d_model
PROMPT = np.array([0, 9, 2], np.int32)
RANDOM = np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float32)


def metrics(server, model=MODEL) -> dict[str, float]:
    """Return our metrics, `name{label="…",…}` without the model and the device, after the next publication."""
    time.sleep(2.1)
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    ours = [line for line in lines if line.startswith("florence2_") and f'model="{model}"' in line]
    found = {}
    for line in ours:
        name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()
        left = ",".join(label for label in labels.split(",") if not re.match("model=|device=", label))
        found[name + (f"{{{left}}}" if left else "")] = float(value)
    return found


def tensors(features=RANDOM, prompt=PROMPT, **options):
    kinds = {"LENGTH_PENALTY": np.float32, "EARLY_STOPPING": np.bool_}
    more = {name: np.array([value], kinds.get(name, np.int32)) for name, value in options.items()}
    return {"IMAGE_FEATURES": features, "PROMPT_IDS": prompt, **more}


def test_the_metrics_add_up_to_the_requests(server):
    """By task and outcome; tokens, stages and histograms too. Triton counts the requests that preprocess refuses."""
    before = metrics(server)
    image = png(scene_image(SEEDS[0]))
    sent = [("<OD>", {}), ("<OD>", {"NUM_BEAMS": 1}), ("<CAPTION>", {"MAX_NEW_TOKENS": 3}), ("what is it?", {}),
            ("where?", {})]  # fmt: skip
    tokens = [int(ask(server, image, task, **options)["NUM_TOKENS"]) for task, options in sent]
    refused(server, image, "<OD>", "superfluous")
    refused(server, image, "<OCR>", timeout=1)
    assert call(server, MODEL, tensors(prompt=np.array([], np.int32)))[0] == "INVALID_ARGUMENT"
    after = metrics(server)
    grown = {line: after[line] - before.get(line, 0) for line in after}

    def requests(outcome, task):
        return grown.get(f'florence2_requests_total{{outcome="{outcome}",task="{task}"}}', 0)

    assert requests("stop", "od") == 2
    assert requests("length", "caption") == 1
    assert requests("stop", "other") + requests("length", "other") == 2, "free prompts are one series"
    assert requests("deadline", "ocr") == 1
    assert requests("invalid", "other") == 1
    total = sum(value for line, value in grown.items() if line.startswith("florence2_requests_total"))
    assert total == 7, "the superfluous text never reached the decoder"
    generated = sum(value for line, value in grown.items() if line.startswith("florence2_generated_tokens_total"))
    assert generated == sum(tokens)
    assert grown["florence2_time_to_first_token_seconds_count"] == 5
    assert grown['florence2_stage_seconds_count{stage="decode"}'] == 5
    assert grown["florence2_steps_total"] >= max(tokens)
    assert after["florence2_engine_up"] == 1
    assert after["florence2_live_requests"] == after["florence2_waiting_requests"] == after["florence2_live_rows"] == 0
    assert after['florence2_kv_bytes{state="reserved"}'] > after['florence2_kv_bytes{state="used"}'] == 0


def test_every_metric_is_on_the_endpoint(server):
    """docs/metrics.md lists them."""
    ask(server, png(scene_image(SEEDS[0])), "<OD>")
    lines = " ".join(metrics(server))
    assert [metric.name for metric in METRICS if metric.name not in lines] == []


NUMBERS = [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38]
HOSTILE = [
    *(tensors(np.full((TOKENS, WIDTH), number, np.float32)) for number in NUMBERS),
    tensors(np.where(np.arange(TOKENS * WIDTH).reshape(TOKENS, WIDTH) == 77, np.nan, RANDOM).astype(np.float32)),
    tensors(np.zeros((TOKENS - 1, WIDTH), np.float32)),
    tensors(np.zeros((TOKENS, WIDTH, 1), np.float32)),
    tensors(np.zeros((0, WIDTH), np.float32)),
    tensors(np.zeros((TOKENS, WIDTH), np.int32)),
    tensors(prompt=np.array([], np.int32)),
    tensors(prompt=np.array([[0, 9, 2]], np.int32)),
    tensors(prompt=np.array([0.0, 9.0, 2.0], np.float32)),
    tensors(prompt=np.array([0, -1, 2], np.int32)),
    tensors(prompt=np.array([0, 2**31 - 1, 2], np.int32)),
    tensors(prompt=np.array([0, -(2**31), 2], np.int32)),
    tensors(prompt=np.zeros(100_000, np.int32)),
    tensors(NUM_BEAMS=0),
    tensors(NUM_BEAMS=-3),
    tensors(NUM_BEAMS=2**31 - 1),
    tensors(MAX_NEW_TOKENS=0),
    tensors(MAX_NEW_TOKENS=-(2**31)),
    tensors(NO_REPEAT_NGRAM_SIZE=-1),
    tensors(LENGTH_PENALTY=np.nan),
    tensors(LENGTH_PENALTY=-np.inf),
    tensors(LENGTH_PENALTY=1e30),
    {**tensors(), "NUM_BEAMS": np.array([1, 2], np.int32)},
    {**tensors(), "ANSWER_KEY": np.array([b"\xff\xfe"], np.object_)},
    {"IMAGE_FEATURES": RANDOM},
    {"PROMPT_IDS": PROMPT},
]


def test_hostile_tensors_are_refused_and_change_no_other_answer(server):
    """Other requests that are decoded at the same time get the same tokens as without them."""
    good = tensors(MAX_NEW_TOKENS=200, NUM_BEAMS=3)
    expected = call(server, MODEL, good)
    others = []
    threads = [threading.Thread(target=lambda: others.append(call(server, MODEL, good))) for _ in range(3)]
    for thread in threads:
        thread.start()
    statuses = [call(server, MODEL, hostile)[0] for hostile in HOSTILE]
    for thread in threads:
        thread.join()
    assert statuses == ["INVALID_ARGUMENT"] * len(HOSTILE)
    for other in others:
        assert other["TOKENS"].tolist() == expected["TOKENS"].tolist()


@pytest.mark.parametrize("features", [np.full((TOKENS, WIDTH), 1e-42), RANDOM * 1e4, np.zeros((TOKENS, WIDTH))])
def test_odd_but_finite_features_are_answered(server, features):
    """Denormal, large and zero features are ordinary numbers."""
    answer = call(server, MODEL, tensors(features.astype(np.float32), MAX_NEW_TOKENS=8))
    assert 1 <= answer["NUM_TOKENS"][0] <= 8


@pytest.mark.parametrize("timeout", [2**63 - 1, 2**40])
def test_a_huge_time_limit_is_none(server, timeout):
    """The arithmetic of deadlines works up to the largest number of the protocol."""
    assert ask(server, png(scene_image(SEEDS[0])), "<OD>", timeout=timeout)["FINISH_REASON"] == b"stop"


def test_a_cancelled_request_frees_its_rows(server):
    """The cancellation of a direct call reaches the engine, and the server goes on."""
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        inputs = [
            triton.InferInput(name, value.shape, "FP32" if value.dtype == np.float32 else "INT32").set_data_from_numpy(
                value
            )
            for name, value in tensors(MAX_NEW_TOKENS=512, NUM_BEAMS=16).items()
        ]
        outcome, ended = [], threading.Event()
        request = client.async_infer(MODEL, inputs, lambda result, error: (outcome.append(error), ended.set()))
        request.cancel()
        assert ended.wait(10)
        assert isinstance(outcome[0], InferenceServerException)
    after = metrics(server)
    assert after["florence2_live_rows"] == 0
    assert "TOKENS" in call(server, MODEL, tensors(MAX_NEW_TOKENS=2))
