"""Processes that die, a signal to stop, a full /dev/shm and misbehaving clients: no request goes without an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.harness import usage_of
from florence2.triton.admission import Tickets
from florence2_client.transports import open_async_transport, parse_url
from tests.stress.clients import KINDS, Misbehave
from tests.stress.conftest import Sizes
from tests.stress.images import ENSEMBLE, encoded, noise, request
from tests.stress.serving import BACK, SILENCE, Load, Serving, under_load, until

LARGE = encoded(noise(random.Random(0), 2000, 1500), "BMP")  # 9 MB
STAGES = ("decoder", "preprocess", "vision", "postprocess", "tritonserver")
PRIVATE = "FLORENCE2_PRIVATE_SHM"


@pytest.fixture
def serving(served: Path) -> Iterator[Serving]:
    with Serving(served) as running:
        yield running


async def kill(serving: Serving, stage: str, clients: int = 8) -> tuple[Load, float | None]:
    """Kill a process under load; return the load, and the seconds until a new request is answered, if one is."""
    async with under_load(serving, clients) as load:
        os.kill(serving.process_of(stage), signal.SIGKILL)
        killed = time.monotonic()
        # Requests past the dead stage may still be answered, so the server is back only after it was away.
        await until(lambda: load.outcomes(killed)["ConnectionFailed"], BACK)
        away = time.monotonic()
        await until(lambda: load.answered_since(away), BACK)
        back = load.answered_since(away)
    return load, None if back is None else back - killed


@dataclass(frozen=True)
class Stop:
    """What SIGTERM led to."""

    inside: list[Any]  # of the requests that the server had accepted: the outputs, or an error
    later: Load  # the requests that were sent after the signal
    seconds: float  # until the server ended
    exit_code: int


async def stop(serving: Serving, clients: int = 16) -> Stop:
    """Send SIGTERM while the server generates long answers, and requests of other clients for a second after it."""
    tickets = Tickets(serving.server_folder() / "tickets", 0)
    later = Load([serving.grpc_url, serving.http_url], clients)
    tokens = {name: np.array([200], np.int32) for name in ("MIN_NEW_TOKENS", "MAX_NEW_TOKENS")}
    image = encoded(noise(random.Random(0), 200, 150))
    transports = [open_async_transport(parse_url(serving.grpc_url)) for _ in range(clients)]
    try:
        inside = [
            asyncio.create_task(each.infer(ENSEMBLE, request(image, "<CAPTION>", **tokens), SILENCE))
            for each in transports
        ]
        assert await until(lambda: len(tickets.look().tickets) == clients, BACK)
        signaled = time.monotonic()
        serving.process.terminate()
        sending = asyncio.create_task(later.run())
        await asyncio.sleep(1.0)
        later.stopping = True
        outcomes = await asyncio.gather(*inside, return_exceptions=True)
        await sending
        await until(lambda: serving.process.poll() is not None, BACK)
    finally:
        for each in transports:
            await each.close()
    return Stop(outcomes, later, time.monotonic() - signaled, serving.process.wait())


async def fill_shared_memory(
    serving: Serving, clients: int = 4, seconds: float = 8.0
) -> tuple[Load, Load, float | None]:
    """Take all free space of /dev/shm for a while, in which clients send images that need more of it than those before.

    Return the ordinary load, the load of large images, and the seconds from the end of it to the next answer.
    """
    filler = Path("/dev/shm/filler")
    large = Load([serving.grpc_url, serving.http_url], clients, image=LARGE)
    async with under_load(serving, clients) as load:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        sending = asyncio.create_task(large.run())
        await asyncio.sleep(seconds)
        filler.unlink()
        freed = time.monotonic()
        await until(lambda: load.answered_since(freed) or serving.process.poll() is not None, BACK)
        back = load.answered_since(freed)
        large.stopping = True
        await sending
    return load, large, None if back is None else back - freed


async def next_to(serving: Serving, misbehave: Misbehave | None, each: int, seconds: float = 10.0) -> Load:
    """Return the load of four other clients next to `each` clients that misbehave."""
    async with under_load(serving, 4, warm_up=0.0) as load:
        load.sent -= len(load.replies)  # those in flight
        load.replies.clear()
        urls = serving.http_url, serving.grpc_url
        crowd = [asyncio.create_task(misbehave(*urls)) for _ in range(each)] if misbehave else []
        await asyncio.sleep(seconds)
        while not all(client.done() for client in crowd):
            for client in crowd:
                client.cancel()
            await asyncio.wait(crowd, timeout=1.0)  # again: before Python 3.12, `wait_for` may lose a cancellation
    return load


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_process_comes_back(serving: Serving, stage: str) -> None:
    load, seconds = asyncio.run(kill(serving, stage))
    print(f"\n{stage}: answers again after {seconds and round(seconds, 1)} s; {dict(load.outcomes())}")
    assert load.clear and seconds is not None


def test_sigterm_answers_the_requests_in_flight(serving: Serving) -> None:
    stopped = asyncio.run(stop(serving))
    print(f"\nexit code {stopped.exit_code} after {stopped.seconds:.1f} s; {dict(stopped.later.outcomes())}")
    assert [each for each in stopped.inside if isinstance(each, BaseException)] == []
    assert stopped.exit_code == 0 and stopped.later.clear


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a /dev/shm of its own")
def test_shared_memory_runs_full(request: pytest.FixtureRequest, served: Path) -> None:
    """The test runs itself again in a namespace whose /dev/shm has 300 MB."""
    if PRIVATE not in os.environ:
        script = 'mount -t tmpfs -o size=300m tmpfs /dev/shm && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "pytest", "-qs"]
        test = f"{__file__}::{request.node.name}"
        environment = {**os.environ, PRIVATE: "1", "STRESS_REPOSITORY": str(served)}
        assert subprocess.run([*command, test], env=environment, cwd=request.config.rootpath).returncode == 0
        return
    with Serving(served) as serving:
        load, large, seconds = asyncio.run(fill_shared_memory(serving))
        code = serving.process.poll()
    print(f"\nimages as before: {dict(load.outcomes())}; large images: {dict(large.outcomes())}")
    print(f"answered again {seconds and round(seconds, 1)} s after there was room; exit code {code}")
    assert load.clear and large.clear


def test_other_clients_get_all_their_answers(serving: Serving, sizes: Sizes) -> None:
    """Next to slow, silent and vanishing clients."""
    print(f"\n{'misbehaving':14} {'p50 s':>7} {'worst s':>8} {'MiB':>7}")
    for name, misbehave in {"none": None, **KINDS}.items():
        load = asyncio.run(next_to(serving, misbehave, sizes.misbehaving))
        times = [reply.seconds for reply in load.replies if reply.outcome == "answered"]
        memory = usage_of(serving.processes()).memory
        print(
            f"{name:14} {np.median(times):7.3f} {max(times):8.3f} {memory:7.1f}   {dict(load.outcomes())}", flush=True
        )
        assert load.clear and set(load.outcomes()) == {"answered"}
