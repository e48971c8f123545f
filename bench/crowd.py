"""Many clients at once: who is refused, how soon, and what memory it takes.

    python -m bench.crowd --repository DIR --clients 500 --seconds 60

All ask in the same moment, half by gRPC and half by HTTP, each about a picture of its own. Whoever still waits after
`--seconds` gives up. Prints the outcomes with their times, and the most memory that the server took with its regions in
/dev/shm; exits with 1 if anybody got something else than an answer or UNAVAILABLE.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import hostile
from bench.soak_live import Sample, sample
from florence2.errors import Florence2Error
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client.transports.base import open_async_transport, parse_url

ALLOWED = {"answered", "Unavailable", "still waiting"}


async def crowd(urls: list[str], clients: int, seconds: float, tokens: int = 16) -> dict[str, list[float]]:
    """Outcome -> the times that it took to come, in seconds."""
    chance = random.Random(0)
    short = {"MAX_NEW_TOKENS": np.array([tokens], np.int32), "NUM_BEAMS": np.array([1], np.int32)}
    pictures = [hostile.encoded(hostile.noise(chance, 640, 480), "JPEG", quality=90) for _ in range(clients)]
    outcomes: dict[str, list[float]] = defaultdict(list)
    connections = [open_async_transport(parse_url(urls[i % len(urls)])) for i in range(clients)]

    async def one(number: int) -> None:
        asked = hostile.question(pictures[number], "<CAPTION>", **short)
        try:
            await asyncio.wait_for(connections[number].infer(hostile.ENSEMBLE, asked, None), seconds)
            outcome = "answered"
        except asyncio.TimeoutError:
            outcome = "still waiting"
        except Florence2Error as error:
            outcome = type(error).__name__
        outcomes[outcome].append(time.monotonic() - start)

    start = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(clients)))
    for connection in connections:
        await connection.close()
    return outcomes


def pictures_waiting(server: EmbeddedServer) -> float:
    """Decoded, in front of the encoder, by Triton's own count."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    mark = 'nv_inference_pending_request_count{model="florence2_vision"'
    return max(float(line.rpartition(" ")[2]) for line in lines if line.startswith(mark))


class Watched(NamedTuple):
    outcomes: dict[str, list[float]]
    before: Sample
    most: Sample
    waiting: float  # pictures in front of the encoder, at most
    latecomers: list[float]  # seconds until one more was refused, while the others waited


async def watched(server: EmbeddedServer, clients: int, seconds: float) -> Watched:
    before = most = sample(server)
    waiting, latecomers = 0.0, []
    running = asyncio.create_task(crowd([server.grpc_url, server.http_url], clients, seconds))
    while not running.done():
        now = sample(server)
        most = Sample(*map(max, most, now))
        waiting = max(waiting, await asyncio.to_thread(pictures_waiting, server))
        if waiting:
            latecomer = await crowd([server.grpc_url], 1, 0.5)
            latecomers += latecomer.get("Unavailable", [])
        await asyncio.wait([running], timeout=0.5)
    return Watched(running.result(), before, most, waiting, latecomers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True, help="an exported repository")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with EmbeddedServer(ServingOptions.on_free_ports(options.repository), report=lambda line: None) as server:
        asyncio.run(crowd([server.grpc_url, server.http_url], 2, 60))  # the first answers take memory of their own
        outcomes, before, most, waiting, late = asyncio.run(watched(server, options.clients, options.seconds))
        server._hurry = True  # whoever still waits is not waited for
    for outcome, times in sorted(outcomes.items()):
        p50, p99 = np.percentile(times, [50, 99])
        print(f"{len(times):5d}  {outcome:14} p50 {p50:6.2f} s  p99 {p99:6.2f} s")
    for name in Sample._fields:
        print(f"{name:12} {getattr(before, name):8.1f} before, {getattr(most, name):8.1f} at most")
    if late:
        print(f"one more, while they waited: refused {len(late)} times, after {1000 * np.median(late):.0f} ms (median)")
    print(f"decoded pictures in front of the encoder: {waiting:.0f} at most")
    return int(not set(outcomes) <= ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
