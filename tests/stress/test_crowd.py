"""Many clients that send in the same moment: each is answered or refused, and the server's memory stays bounded.

Half of them send over gRPC and half over HTTP, each an image of its own.
"""

from __future__ import annotations

import asyncio
import random
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.harness import Usage, embedded_server, server_usage
from florence2.errors import Florence2Error
from florence2.server.embedded import EmbeddedServer
from florence2_client.transports import open_async_transport, parse_url
from tests.stress.conftest import Sizes
from tests.stress.images import ENSEMBLE, encoded, noise, request
from tests.stress.serving import kind_of

ALLOWED = {"answered", "Unavailable", "still waiting"}


async def crowd(urls: list[str], clients: int, seconds: float, tokens: int = 16) -> dict[str, list[float]]:
    """Send a request from each client at once and return the seconds of each response, by outcome."""
    chance = random.Random(0)
    short = {"MAX_NEW_TOKENS": np.array([tokens], np.int32), "NUM_BEAMS": np.array([1], np.int32)}
    contents = [encoded(noise(chance, 640, 480), "JPEG", quality=90) for _ in range(clients)]
    outcomes: dict[str, list[float]] = defaultdict(list)
    connections = [open_async_transport(parse_url(urls[i % len(urls)])) for i in range(clients)]

    async def one(number: int) -> None:
        inputs = request(contents[number], "<CAPTION>", **short)
        try:
            await asyncio.wait_for(connections[number].infer(ENSEMBLE, inputs, None), seconds)
            outcome = "answered"
        except asyncio.TimeoutError:
            outcome = "still waiting"
        except Florence2Error as error:
            outcome = kind_of(error)
        outcomes[outcome].append(time.monotonic() - start)

    start = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(clients)))
    for connection in connections:
        await connection.close()
    return outcomes


def images_waiting(server: EmbeddedServer) -> float:
    """Return how many decoded images wait in front of the encoder; images that are equal count once."""
    with urllib.request.urlopen(server.metrics_url) as response:
        lines = response.read().decode().splitlines()
    mark = "florence2_encoder_waiting_images{"
    return max(float(line.rpartition(" ")[2]) for line in lines if line.startswith(mark))


class Watched(NamedTuple):
    outcomes: dict[str, list[float]]
    before: Usage
    most: Usage
    waiting: float  # images in front of the encoder, at most
    latecomers: list[float]  # seconds until one more client was refused while the others waited


async def watched(server: EmbeddedServer, clients: int, seconds: float) -> Watched:
    before = most = server_usage(server)
    waiting, latecomers = 0.0, []
    running = asyncio.create_task(crowd([server.grpc_url, server.http_url], clients, seconds))
    while not running.done():
        now = server_usage(server)
        most = Usage(*map(max, most, now))
        waiting = max(waiting, await asyncio.to_thread(images_waiting, server))
        if waiting:
            latecomer = await crowd([server.grpc_url], 1, 0.5)
            latecomers += latecomer.get("Unavailable", [])
        await asyncio.wait([running], timeout=0.5)
    return Watched(running.result(), before, most, waiting, latecomers)


def test_every_client_is_answered_or_refused(served: Path, sizes: Sizes) -> None:
    with embedded_server(served) as server:
        asyncio.run(crowd([server.grpc_url, server.http_url], 2, 60))  # the first requests need memory of their own
        outcomes, before, most, waiting, late = asyncio.run(watched(server, sizes.crowd, sizes.seconds))
        server._stop_at_once = True  # do not wait for requests whose clients have given up
    print()
    for outcome, times in sorted(outcomes.items()):
        p50, p99 = np.percentile(times, [50, 99])
        print(f"{len(times):5d}  {outcome:14} p50 {p50:6.2f} s  p99 {p99:6.2f} s")
    for name in Usage._fields:
        print(f"{name:12} {getattr(before, name):8.1f} before, {getattr(most, name):8.1f} at most")
    if late:
        print(f"one more request meanwhile: refused {len(late)} times, after {1000 * np.median(late):.0f} ms (median)")
    print(f"decoded images in front of the encoder: {waiting:.0f} at most")
    assert set(outcomes) <= ALLOWED
