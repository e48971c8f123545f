"""Short forms of the stress tests, on one server that admits few requests.

First what must not harm it, then what kills it, and at last its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from florence2.errors import QueueFull, Unavailable
from florence2.triton.admission import Tickets
from florence2_client import Client
from florence2_client.cli.health import check_health
from florence2_client.transports import open_transport, parse_url
from florence2_export.repository import read_config, write_config
from tests.stress.clients import KINDS, cancelling, vanishing
from tests.stress.images import good, request
from tests.stress.serving import BACK, Load, Serving, under_load
from tests.stress.test_crowd import crowd as send_crowd
from tests.stress.test_faults import kill, stop
from tests.stress.test_images import send_images

SLOTS = 6


@pytest.fixture(scope="module")
def serving(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`florence2 serve` in a process of its own, with places for six."""
    few = tmp_path_factory.mktemp("few") / "repository"
    shutil.copytree(repository, few)
    config = read_config(few / "florence2_preprocess")
    config.parameters["max_inside"].string_value = str(SLOTS)
    write_config(few / "florence2_preprocess", config)
    with Serving(few) as running:
        yield running


def tickets(serving: Serving) -> Tickets:
    return Tickets(serving.server_folder() / "tickets", 0)


def all_have_left(serving: Serving, seconds: float = 20) -> bool:
    """Return whether all tickets come back."""
    of, end = tickets(serving), time.monotonic() + seconds
    while of.look().tickets and time.monotonic() < end:
        time.sleep(0.05)
    return not of.look().tickets


def test_a_crowd_is_answered_or_refused(serving):
    """At most six requests are inside; all others are UNAVAILABLE, over gRPC and over HTTP."""
    before = tickets(serving).look().refused_full
    outcomes = asyncio.run(send_crowd([serving.grpc_url, serving.http_url], clients=60, seconds=60))
    assert set(outcomes) == {"answered", "Unavailable"}
    assert len(outcomes["answered"]) >= SLOTS and sum(map(len, outcomes.values())) == 60
    assert tickets(serving).look().refused_full == before + len(outcomes["Unavailable"])
    assert all_have_left(serving)
    time.sleep(2.1)
    with urllib.request.urlopen(serving.metrics_url) as response:
        lines = response.read().decode().splitlines()
    refused = next(line for line in lines if line.startswith("florence2_refused_requests_total{") and "full" in line)
    assert float(refused.rpartition(" ")[2]) == before + len(outcomes["Unavailable"])


def test_a_full_server_says_so_and_is_alive_once_a_slot_is_free(serving):
    """The message names the limit. A full queue that nothing leaves is no sign of life: a stage may hang behind it."""
    of = Tickets(serving.server_folder() / "tickets", SLOTS)
    taken = [of.enter(of.take()).ticket for _ in range(SLOTS)]
    try:
        with (
            Client(serving.grpc_url, retry_for=0) as client,
            pytest.raises(Unavailable, match=r"full \(6 requests are"),
        ):
            client.run(good(random.Random(0)), "od")
        health = check_health(serving.grpc_url, timeout=5, metrics=serving.metrics_url)
        assert not health.alive and "no other request made progress" in health.sentence
        with pytest.raises(QueueFull):
            of.take()
    finally:
        for number in taken:
            of.give_back(number)
    assert check_health(serving.grpc_url).sentence.startswith("alive: all stages answered")
    assert all_have_left(serving)


def test_direct_calls_keep_no_slot(serving):
    """Neither of preprocess, which issues tickets, nor of the decoder with an invalid ticket once it has answered."""
    transport = open_transport(parse_url(serving.grpc_url))
    inputs = request(good(random.Random(0)), "<CAPTION>")
    made = transport.infer("florence2_preprocess", inputs, 30)
    assert made["TICKET"].tolist() == [0] and made["PROMPT"].tolist() == [b"What does the image describe?"]
    assert all_have_left(serving, 0)
    features = np.zeros((37, 128), np.float32)
    forged = {"IMAGE_FEATURES": features, "PROMPT_IDS": made["PROMPT_IDS"], "TICKET": np.array([77], np.int64)}
    assert (
        transport.infer("florence2_decoder", {**forged, "MAX_NEW_TOKENS": np.array([2], np.int32)}, 30)["NUM_TOKENS"]
        == 2
    )
    transport.close()


def test_a_time_limit_counts_from_the_ticket(serving):
    """A request that took long to reach the decoder has no time left there."""
    transport = open_transport(parse_url(serving.grpc_url))
    made = transport.infer("florence2_preprocess", request(good(random.Random(0)), "<OD>"), 30)
    of = Tickets(serving.server_folder() / "tickets", SLOTS)
    number = of.take()
    time.sleep(0.6)
    inputs = {"IMAGE_FEATURES": np.zeros((37, 128), np.float32), "PROMPT_IDS": made["PROMPT_IDS"]}
    with pytest.raises(Unavailable, match="time limit"):
        transport.infer("florence2_decoder", {**inputs, "TICKET": np.array([number], np.int64)}, 0.5)
    transport.close()
    assert all_have_left(serving)


def test_damaged_images_harm_no_other_request(serving):
    """Damaged images are INVALID_ARGUMENT, unusual and good ones are answered, good ones as without the others."""
    counts = asyncio.run(send_images(serving.grpc_url, requests=60, in_flight=4))
    assert not [outcome for outcome in counts if outcome.startswith("WRONG")]
    assert {"good: answered", "unusual: answered", "damaged: InvalidRequest"} <= set(counts) and counts.total() == 60
    assert all_have_left(serving)


def test_misbehaving_clients_harm_no_other_client(serving):
    """All kinds at once, twenty of each, next to a client that gets every answer."""

    async def run() -> Load:
        async with under_load(serving, 1, warm_up=0) as load:
            kinds = [kind for name, kind in KINDS.items() if name not in ("vanishing", "cancelling")]
            crowd = [asyncio.create_task(kind(serving.http_url, serving.grpc_url)) for kind in kinds * 20]
            await asyncio.sleep(3)
            for client in crowd:
                client.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
        return load

    load = asyncio.run(run())
    assert set(load.outcomes()) == {"answered"} and load.clear


def test_clients_that_leave_give_their_slots_back(serving):
    """Reset connections and cancelled calls, before or after the image was decoded."""

    async def run() -> None:
        leaving = (vanishing, cancelling)
        crowd = [asyncio.create_task(kind(serving.http_url, serving.grpc_url)) for kind in leaving * 15]
        await asyncio.sleep(1.5)
        for client in crowd:
            client.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)

    asyncio.run(run())
    assert all_have_left(serving, 30)
    assert check_health(serving.http_url).alive


def test_requests_that_crash_triton_are_survived(serving):
    """A client sends them without pause, also while the server starts, and the log names what died and of what."""
    with triton.InferenceServerClient(serving.grpc_url.removeprefix("grpc://")) as client:
        tensors = request(good(random.Random(0)), "<CAPTION>")
        inputs = [triton.InferInput(name, [1], "BYTES") for name in tensors]
        for made, values in zip(inputs, tensors.values(), strict=True):
            made.set_data_from_numpy(values)
        classes = [triton.InferRequestedOutput("RESULT", class_count=1)]
        end = time.monotonic() + BACK
        while sum("killed by SIGFPE" in line for line in serving.lines) < 3 and time.monotonic() < end:
            with contextlib.suppress(InferenceServerException):
                client.infer("florence2_ensemble", inputs, outputs=classes, client_timeout=10)
            time.sleep(0.02)
    deaths = [line for line in serving.lines if "Starting again" in line]
    assert len(deaths) == 3
    assert all(line.startswith("tritonserver stopped by itself: killed by SIGFPE") for line in deaths)
    with Client(serving.grpc_url, retry_for=BACK) as client:
        client.run(good(random.Random(0)), "od", max_new_tokens=4)


def test_a_killed_decoder_comes_back(serving):
    """Each request of the load has an answer or a clear error, and the server answers again at the same address.

    A client that retries notices nothing but the delay.
    """
    over = threading.Event()

    def send_with_retries() -> int:
        sent = 0
        with Client(serving.http_url, retry_for=BACK) as client:
            while not over.is_set():
                client.run(good(random.Random(sent)), "od", max_new_tokens=4)
                sent += 1
        return sent

    with ThreadPoolExecutor(1) as pool:
        retrying = pool.submit(send_with_retries)
        try:
            load, seconds = asyncio.run(kill(serving, "decoder", clients=4))
        finally:
            over.set()
        assert retrying.result() > 1
    assert load.clear and seconds is not None
    assert load.outcomes()["ConnectionFailed"] and "SILENCE" not in load.outcomes()
    assert all_have_left(serving)


def test_sigterm_answers_the_requests_in_flight(serving):
    """Later requests get an answer or a clear refusal, and the exit code is 0."""
    stopped = asyncio.run(stop(serving, clients=4))
    assert [each for each in stopped.inside if isinstance(each, BaseException)] == []
    assert stopped.exit_code == 0 and stopped.later.clear
