"""A served model under fire, in short: the long programs are bench.crowd, bench.hostile and bench.faults.

One server, whose places are few. In the order of the tests: what must not harm it, then what kills it, then its end.
"""

from __future__ import annotations

import asyncio
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

from bench import crowd, faults, hostile, rude
from bench.serving import BACK, Load, Serving, under_load
from florence2.errors import QueueFull, Unavailable
from florence2.triton.admission import Tickets
from florence2_client import Client
from florence2_client.cli.health import check_health
from florence2_client.transports.base import open_transport, parse_url
from florence2_export.repository import read_config, write_config

PLACES = 6


@pytest.fixture(scope="module")
def serving(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`florence2 serve` in a process of its own, with places for six."""
    few = tmp_path_factory.mktemp("few") / "repository"
    shutil.copytree(repository, few)
    config = read_config(few / "florence2_preprocess")
    config.parameters["max_inside"].string_value = str(PLACES)
    write_config(few / "florence2_preprocess", config)
    with Serving(few) as running:
        yield running


def tickets(serving: Serving) -> Tickets:
    return Tickets(serving.server_folder() / "tickets", 0)


def nobody_inside(serving: Serving, seconds: float = 20) -> bool:
    """Whether all tickets come back."""
    of, end = tickets(serving), time.monotonic() + seconds
    while of.look().tickets and time.monotonic() < end:
        time.sleep(0.05)
    return not of.look().tickets


def test_a_crowd_is_answered_or_refused(serving):
    """Never more than six are inside; the others hear UNAVAILABLE, by gRPC and HTTP, and nobody anything else."""
    before = tickets(serving).look().refused
    outcomes = asyncio.run(crowd.crowd([serving.grpc_url, serving.http_url], clients=60, seconds=60))
    assert set(outcomes) == {"answered", "Unavailable"}
    assert len(outcomes["answered"]) >= PLACES and sum(map(len, outcomes.values())) == 60
    assert tickets(serving).look().refused == before + len(outcomes["Unavailable"])
    assert nobody_inside(serving)
    time.sleep(2.1)
    with urllib.request.urlopen(serving.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    refused = next(line for line in lines if line.startswith("florence2_refused_requests_total{"))
    assert float(refused.rpartition(" ")[2]) == before + len(outcomes["Unavailable"])


def test_a_full_server_says_so_and_is_alive(serving):
    """The sentence names the limit; the probe, which asks preprocess directly too, takes no place and judges by it."""
    of = Tickets(serving.server_folder() / "tickets", PLACES)
    taken = [of.take() for _ in range(PLACES)]
    try:
        with (
            Client(serving.grpc_url, retry_for=0) as client,
            pytest.raises(Unavailable, match=r"full \(6 requests are"),
        ):
            client.run(hostile.good(random.Random(0)), "od")
        health = check_health(serving.grpc_url)
        assert health.alive and "queue is full" in health.sentence
        with pytest.raises(QueueFull):
            of.take()
    finally:
        for number in taken:
            of.give_back(number)
    assert check_health(serving.grpc_url).sentence.startswith("alive: all stages answered")
    assert nobody_inside(serving)


def test_direct_calls_take_no_place(serving):
    """Of preprocess, which hands out tickets, and of the decoder with a ticket that nobody has."""
    transport = open_transport(parse_url(serving.grpc_url))
    asked = hostile.question(hostile.good(random.Random(0)), "<CAPTION>")
    made = transport.infer("florence2_preprocess", asked, 30)
    assert made["TICKET"].tolist() == [0] and made["PROMPT"].tolist() == [b"What does the image describe?"]
    assert nobody_inside(serving, 0)
    features = np.zeros((37, 128), np.float32)
    forged = {"IMAGE_FEATURES": features, "PROMPT_IDS": made["PROMPT_IDS"], "TICKET": np.array([77], np.int64)}
    assert (
        transport.infer("florence2_decoder", {**forged, "MAX_NEW_TOKENS": np.array([2], np.int32)}, 30)["NUM_TOKENS"]
        == 2
    )
    transport.close()


def test_a_time_limit_counts_from_the_ticket(serving):
    """A request that was long on its way to the decoder has no time left there."""
    transport = open_transport(parse_url(serving.grpc_url))
    made = transport.infer("florence2_preprocess", hostile.question(hostile.good(random.Random(0)), "<OD>"), 30)
    of = Tickets(serving.server_folder() / "tickets", PLACES)
    number = of.take()
    time.sleep(0.6)
    asked = {"IMAGE_FEATURES": np.zeros((37, 128), np.float32), "PROMPT_IDS": made["PROMPT_IDS"]}
    with pytest.raises(Unavailable, match="time limit"):
        transport.infer("florence2_decoder", {**asked, "TICKET": np.array([number], np.int64)}, 0.5)
    transport.close()
    assert nobody_inside(serving)


def test_hostile_pictures_harm_nobody(serving):
    """Broken ones are INVALID_ARGUMENT, odd and good ones answered, the good ones as when alone."""
    counts = asyncio.run(hostile.run(serving.grpc_url, requests=60, in_flight=4))
    assert not [outcome for outcome in counts if outcome.startswith("WRONG")]
    assert {"good: answered", "odd: answered", "broken: InvalidRequest"} <= set(counts) and counts.total() == 60
    assert nobody_inside(serving)


def test_rude_clients_harm_nobody(serving):
    """All kinds at once, twenty of each, beside a polite caller who gets every answer."""

    async def run() -> Load:
        async with under_load(serving, 1, warm_up=0) as load:
            kinds = [kind for name, kind in rude.KINDS.items() if name not in ("vanishing", "cancelling")]
            crowd = [asyncio.create_task(kind(serving.http_url, serving.grpc_url)) for kind in kinds * 20]
            await asyncio.sleep(3)
            for client in crowd:
                client.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
        return load

    load = asyncio.run(run())
    assert set(load.counts()) == {"answered"} and load.clear


def test_those_who_leave_give_their_places_back(serving):
    """Reset connections and cancelled calls, before or after the picture was decoded."""

    async def run() -> None:
        leaving = (rude.vanishing, rude.cancelling)
        crowd = [asyncio.create_task(kind(serving.http_url, serving.grpc_url)) for kind in leaving * 15]
        await asyncio.sleep(1.5)
        for client in crowd:
            client.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)

    asyncio.run(run())
    assert nobody_inside(serving, 30)
    assert check_health(serving.http_url).alive


def test_a_killed_decoder_comes_back(serving):
    """Each request of the load has an answer or a clear error, and answers come again at the same address.

    A client that asks again notices nothing but the time it takes.
    """
    over = threading.Event()

    def ask_patiently() -> int:
        asked = 0
        with Client(serving.http_url, retry_for=BACK) as client:
            while not over.is_set():
                client.run(hostile.good(random.Random(asked)), "od", max_new_tokens=4)
                asked += 1
        return asked

    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(ask_patiently)
        try:
            load, seconds = asyncio.run(faults.kill(serving, "decoder", callers=4))
        finally:
            over.set()
        assert patient.result() > 1
    assert load.clear and seconds is not None
    assert load.counts()["ConnectionFailed"] and "SILENCE" not in load.counts()
    assert nobody_inside(serving)


def test_sigterm_answers_whom_it_accepted(serving):
    """Who was under way gets the answer, who comes later an answer or a clear refusal; exit code 0."""
    load, told, _seconds, code = asyncio.run(faults.stop(serving, callers=4))
    under_way = [outcome for asked, came, outcome in load.replies if asked < told <= came]
    assert code == 0 and load.clear
    assert set(under_way) == {"answered"} and len(under_way) >= 1
