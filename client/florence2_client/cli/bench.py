"""`florence2 bench`: latency and throughput of a running server, as clients see them."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from florence2.errors import Florence2Error, InvalidRequest
from florence2_client.async_client import AsyncClient
from florence2_client.cli.arguments import (
    FILES,
    MOST_IN_FLIGHT,
    add_connection,
    add_generation,
    add_json,
    add_task,
    connection,
    generation,
    seconds,
    wants_json,
)
from florence2_client.cli.console import json_line, table
from florence2_client.images import encoded_bytes

EXAMPLES = """\
examples:
  florence2 bench street.jpg --task od
  florence2 bench street.jpg --task caption --concurrency 1,4,16 --seconds 30 --num-beams 1
  florence2 bench photos/*.jpg --task od --url http://gpu-box:8000 | jq .requests_per_second

The given number of requests is kept in flight: each response is followed by the next request. Give several images to
measure the image encoder too, because the server may cache the features of an image.
"""
IN_FLIGHT = (1, 4, 8)
HEADINGS = ("in flight", "answered", "failed", "per second", "tokens/s", "median ms", "90% ms", "99% ms", "longest ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure a running server: requests per second and latency."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    images = parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, sent in turn")
    images.complete = FILES  # type: ignore[attr-defined]
    add_task(parser)
    parser.add_argument(
        "--concurrency", action="extend", type=_numbers, metavar="N,N", help="requests in flight (default: 1,4,8)"
    )
    parser.add_argument(
        "--seconds", type=seconds, default=10.0, metavar="S", help="for each number (default: %(default)g)"
    )
    add_json(parser)
    add_generation(parser)
    add_connection(parser)


@dataclass
class Measurement:
    """The outcome with so many requests in flight."""

    concurrency: int
    seconds: float = 0.0
    tokens: int = 0
    latencies: list[float] = field(default_factory=list)  # seconds
    failures: list[Florence2Error] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return the milliseconds within which that share of the responses arrived; NaN without any."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    def to_dict(self) -> dict[str, Any]:
        return {
            "concurrency": self.concurrency,
            "seconds": round(self.seconds, 3),
            "answered": len(self.latencies),
            "failed": len(self.failures),
            "requests_per_second": round(len(self.latencies) / self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "milliseconds": {
                name: round(self.percentile(share), 1) if self.latencies else None
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
        }

    def cells(self) -> list[str]:
        rates = [f"{number / self.seconds:.2f}" for number in (len(self.latencies), self.tokens)]
        times = [f"{self.percentile(share):.0f}" for share in (0.5, 0.9, 0.99, 1.0)]
        return [str(self.concurrency), str(len(self.latencies)), str(len(self.failures)), *rates, *times]


def run(options: argparse.Namespace) -> int:
    images = [encoded_bytes(Path(name)) for name in options.images]
    measurements = []
    for concurrency in options.concurrency or IN_FLIGHT:
        measurement = asyncio.run(_measure(options, images, concurrency))
        measurements.append(measurement)
        if wants_json(options):
            print(json_line(measurement.to_dict()), flush=True)
    if not wants_json(options):
        print(*table([HEADINGS, *(measurement.cells() for measurement in measurements)], numbers=True), sep="\n")
    failures = [failure for measurement in measurements for failure in measurement.failures]
    if failures:
        raise failures[0]
    return 0


async def _measure(options: argparse.Namespace, images: list[bytes], concurrency: int) -> Measurement:
    """Send one request that is not counted, to connect, then measure. An error of the first ends the measurement."""
    measurement, supply, given = Measurement(concurrency), cycle(images), generation(options)

    async def send_until(end: float) -> None:
        while (start := time.perf_counter()) < end:
            try:
                result = await client.run(next(supply), options.task, options.text, **given)
            except Florence2Error as error:
                measurement.failures.append(error)
            else:
                measurement.latencies.append(time.perf_counter() - start)
                measurement.tokens += result.num_tokens

    async with AsyncClient(**connection(options), retry_for=0) as client:
        await client.run(images[0], options.task, options.text, **given)
        start = time.perf_counter()
        await asyncio.gather(*(send_until(start + options.seconds) for _ in range(concurrency)))
        measurement.seconds = time.perf_counter() - start
    return measurement


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= MOST_IN_FLIGHT for number in numbers):
        limits = f"whole numbers from 1 to {MOST_IN_FLIGHT}, such as 1,4,8"
        raise InvalidRequest(f"--concurrency takes {limits}, not {text!r}")
    return numbers
