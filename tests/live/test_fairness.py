"""One client must not silence the others, neither with the internal models nor with more requests than are answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from florence2.contract import PREPROCESS
from florence2.errors import QueueFull
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client import AsyncClient, Client
from florence2_export.repository import read_config, write_config
from tests.live.test_decoder import metrics, tensors
from tests.stress.images import encoded, good, noise

MAX_WAIT = 3
PROMPTLY = 5.0  # seconds in which the request of another client is answered, on a machine that does other work


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server in which no request waits longer than three seconds, and whose rate of answers is known."""
    impatient = tmp_path_factory.mktemp("impatient") / "repository"
    shutil.copytree(repository, impatient)
    config = read_config(impatient / "florence2_preprocess")
    config.parameters["max_inside"].string_value = "200"
    config.parameters["max_wait_seconds"].string_value = str(MAX_WAIT)
    write_config(impatient / "florence2_preprocess", config)
    with EmbeddedServer(ServingOptions.on_free_ports(impatient)) as running:
        for _ in range(3):
            seconds_of_another_client(running)
        yield running


def seconds_of_another_client(server: EmbeddedServer) -> float:
    """Return how long a client that retries for five seconds, as by default, waits for its answer."""
    started = time.monotonic()
    with Client(server.grpc_url) as client:
        client.run(good(random.Random(started)), "od", max_new_tokens=8)
    return time.monotonic() - started


def send(
    server: EmbeddedServer, model: str, inputs: dict[str, np.ndarray], outputs: list[str] | None = None, **extra
) -> str:
    """Return "answered" or the message of the error. extra: arguments of `infer`."""
    given = []
    for name, value in inputs.items():
        given.append(triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)))
        given[-1].set_data_from_numpy(value)
    wanted = [triton.InferRequestedOutput(name) for name in outputs] if outputs else None
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        try:
            client.infer(model, given, outputs=wanted, **extra)
        except InferenceServerException as error:
            return error.message()
    return "answered"


def images(count: int) -> list[bytes]:
    chance = random.Random(0)
    return [encoded(noise(chance, 320, 240), "JPEG", quality=90) for _ in range(count)]


@pytest.mark.parametrize("outputs", [["TICKET"], ["PIXELS", "TICKET"], [tensor.name for tensor in PREPROCESS.outputs]])
def test_a_client_of_preprocess_takes_no_place(server, outputs):
    """Whatever it asks for, unless it pretends to be the ensemble."""
    inputs = {"IMAGE": np.array([images(1)[0]], np.object_), "TASK": np.array([b"<OD>"], np.object_)}
    for _ in range(20):
        assert send(server, "florence2_preprocess", inputs, outputs) == "answered"
    assert metrics(server)['florence2_inside_requests{stage="encoder"}'] == 0


def test_abandoned_tickets_are_soon_replaced(server):
    """A client that pretends to be the ensemble fills the server; another one is answered within seconds."""
    inputs = {"IMAGE": np.array([images(1)[0]], np.object_), "TASK": np.array([b"<OD>"], np.object_)}
    outputs = [tensor.name for tensor in PREPROCESS.outputs if not tensor.direct_only]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            answers = list(pool.map(lambda _: send(server, "florence2_preprocess", inputs, outputs), range(220)))
            assert answers.count("answered") < 220, "the server was full"
            assert seconds_of_another_client(server) < PROMPTLY


HUGE = np.zeros(1_000_000, np.int32)
ODD = {
    "postprocess, tokens": ("florence2_postprocess", {"TOKENS": HUGE, "LOG_PROBS": HUGE.astype(np.float32)}),
    "postprocess, log-probs": ("florence2_postprocess", {"LOG_PROBS": HUGE.astype(np.float32)}),
    "postprocess, log masses": ("florence2_postprocess", {"LOG_MASSES": HUGE.astype(np.float32)}),
    "postprocess, key": ("florence2_postprocess", {"ANSWER_KEY": np.array([b"x" * 2_000_000], np.object_)}),
    "postprocess, size": ("florence2_postprocess", {"IMAGE_SIZE": np.array([-(2**31), 2**31 - 1], np.int32)}),
    "decoder, prompt": ("florence2_decoder", tensors(prompt=np.zeros(3_000_000, np.int32))),
    "decoder, key": ("florence2_decoder", {**tensors(), "ANSWER_KEY": np.array([b"x" * 2_000_000], np.object_)}),
    "vision, shape": ("florence2_vision", {"PIXELS": np.zeros((1, 4000, 4000, 3), np.uint8)}),
    "vision, batch": ("florence2_vision", {"PIXELS": np.zeros((64, 192, 192, 3), np.uint8)}),
    "preprocess, task": ("florence2_preprocess", {"TASK": np.array([b"x" * 2_000_000], np.object_)}),
    "preprocess, text": ("florence2_preprocess", {"TEXT": np.array([b"x" * 2_000_000], np.object_)}),
}  # fmt: skip
ORDINARY = {
    "florence2_postprocess": {
        "TOKENS": np.array([0, 9, 2], np.int32), "LOG_PROBS": np.zeros(3, np.float32),
        "IMAGE_SIZE": np.array([640, 480], np.int32), "ANSWER_KEY": np.array([b"<OD>"], np.object_),
    },
    "florence2_preprocess": {
        "IMAGE": np.array([images(1)[0]], np.object_), "TASK": np.array([b"<CAPTION_TO_PHRASE_GROUNDING>"], np.object_),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_huge_tensors_are_refused_while_another_client_is_answered(server, case):
    """The internal models bound what they accept, before they do anything with it."""
    model, odd = ODD[case]
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(send, server, model, {**ORDINARY.get(model, {}), **odd}) for _ in range(20)]
        assert seconds_of_another_client(server) < PROMPTLY
        assert "answered" not in {each.result() for each in running}


@pytest.mark.parametrize(
    "key", ["<OD>", "<OCR_WITH_REGION>", "<REGION_TO_SEGMENTATION>", "<CAPTION_TO_PHRASE_GROUNDING>"]
)
def test_the_longest_answer_is_parsed_at_once(server, key):
    """Whatever its tokens are: as many as the checkpoint has positions."""
    chance = np.random.default_rng(0)
    for tokens in (chance.integers(0, 1000, 512), np.full(512, 9), np.tile(chance.integers(0, 1000, 4), 128)):
        inputs = {
            **ORDINARY["florence2_postprocess"], "TOKENS": tokens.astype(np.int32),
            "LOG_PROBS": np.zeros(512, np.float32), "ANSWER_KEY": np.array([key.encode()], np.object_),
        }  # fmt: skip
        started = time.monotonic()
        send(server, "florence2_postprocess", inputs)
        assert time.monotonic() - started < 10  # where a rule that is too slow takes minutes


def test_clients_of_the_decoder_queue_like_others(server):
    """Long answers for many rows, from a client that calls the decoder by itself: others wait for the first only."""
    features = tensors(MAX_NEW_TOKENS=200, NUM_BEAMS=8, MIN_NEW_TOKENS=200)
    with ThreadPoolExecutor(100) as pool:
        running = [pool.submit(send, server, "florence2_decoder", features) for _ in range(100)]
        time.sleep(0.5)
        waited = []
        for _ in range(3):
            with contextlib.suppress(QueueFull):
                waited.append(seconds_of_another_client(server))
        answers = [each.result() for each in running]
    refused = [answer for answer in answers if answer.startswith("QUEUE_FULL: the request w")]
    assert len(refused) + answers.count("answered") == 100 and len(refused) > 10
    assert max(waited, default=0) < MAX_WAIT + PROMPTLY
    assert seconds_of_another_client(server) < MAX_WAIT + PROMPTLY


def test_clients_of_the_encoder_do_not_hold_up_others(server):
    """An idle encoder answers them; while a request of the ensemble is on its way they are refused at once."""
    chance = np.random.default_rng(1)
    pixels = chance.integers(0, 256, (300, 1, 192, 192, 3), np.uint8)
    assert send(server, "florence2_vision", {"PIXELS": pixels[0]}) == "answered"
    with ThreadPoolExecutor(100) as pool:
        running = [pool.submit(send, server, "florence2_vision", {"PIXELS": each}) for each in pixels]
        time.sleep(0.2)
        assert seconds_of_another_client(server) < PROMPTLY
        answers = [each.result() for each in running]
    refused = [answer for answer in answers if answer.startswith("QUEUE_FULL: the vision encoder is busy")]
    assert len(refused) > 10 and len(refused) + answers.count("answered") == 300


def test_requests_that_would_wait_too_long_are_refused_at_once(server):
    """200 clients: those that get in are answered in time, the others hear the expected wait at once."""
    before = metrics(server).get('florence2_refused_requests_total{reason="wait"}', 0)

    async def one(client: AsyncClient, image: bytes) -> tuple[str, float]:
        started = time.monotonic()
        try:
            await client.run(image, "caption", max_new_tokens=60)
            outcome = "answered"
        except QueueFull as error:
            outcome = str(error)
        return outcome, time.monotonic() - started

    async def crowd() -> list[tuple[str, float]]:
        async with AsyncClient(server.grpc_url, retry_for=0) as client:
            return await asyncio.gather(*(one(client, image) for image in images(200)))

    outcomes = asyncio.run(crowd())
    answered = [seconds for outcome, seconds in outcomes if outcome == "answered"]
    refused = [outcome for outcome, _ in outcomes if outcome != "answered"]
    assert len(answered) >= 8 and len(refused) > 20
    assert max(answered) < 3 * MAX_WAIT + PROMPTLY
    assert any(
        "would wait about" in outcome and f"longer than this server allows ({MAX_WAIT})" in outcome
        for outcome in refused
    )
    after = metrics(server)
    assert after['florence2_refused_requests_total{reason="wait"}'] > before
    assert after["florence2_expected_wait_seconds"] == 0
    assert seconds_of_another_client(server) < PROMPTLY


def test_a_request_is_refused_at_once_if_its_own_timeout_is_too_short(server):
    """While others wait, with a sentence that says so."""
    asked = {"IMAGE": np.array([images(1)[0]], np.object_), "TASK": np.array([b"<OD>"], np.object_)}
    with ThreadPoolExecutor(30) as pool:
        running = [pool.submit(send, server, "florence2_decoder", tensors(MIN_NEW_TOKENS=100)) for _ in range(30)]
        time.sleep(0.2)
        assert re.search(
            r"QUEUE_FULL: the request would wait about \d+ seconds behind \d+ others, longer than its timeout",
            send(server, "florence2_ensemble", asked, timeout=1000),
        )
        for each in running:
            each.result()
