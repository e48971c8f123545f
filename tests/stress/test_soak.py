"""Long runs: every request has one allowed outcome, and memory, threads and descriptors stay as they were."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.harness import Usage, embedded_server, grown, server_usage
from tests.stress.conftest import Sizes
from tests.stress.soak import MEMORY_SLACK, EngineSoak
from tests.stress.traffic import Traffic, send_all

CACHE_MIB = 4  # of image features: full before the first measurement, or filling it would look like growth
SLACK = Usage(MEMORY_SLACK, 1.0, 4, 24)  # threads and descriptors come and go
SETTLED_MINUTES = 10  # before that, allocators and pools still fill


def test_the_engine_does_not_grow(sizes: Sizes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "florence2")  # some prefills fail on purpose
    assert EngineSoak().run(sizes.requests) == []


def test_the_server_does_not_grow(served: Path, sizes: Sizes) -> None:
    """Memory counts from a sixth of the run on, and only if that is long enough."""
    samples, start = list[Usage](), time.monotonic()

    with embedded_server(served, cache_mib=CACHE_MIB, stream=True) as server:

        def tell(counts: Counter[str]) -> None:
            samples.append(server_usage(server))
            wrong = sum(count for outcome, count in counts.items() if outcome.startswith("WRONG"))
            minutes = (time.monotonic() - start) / 60
            print(f"{minutes:5.1f} min {counts.total():7d} requests, {wrong} wrong  {samples[-1]}", flush=True)

        async def send() -> Counter[str]:
            traffic = Traffic(server.grpc_url, server.http_url)
            await traffic.remember()
            tell(Counter())
            try:
                seconds = 60 * sizes.minutes
                counts = await send_all(traffic, seconds, sizes.rate, tell, seconds / 12)
            finally:
                await traffic.close()
            tell(counts)
            return counts

        counts = asyncio.run(send())
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d}  {outcome}")
    assert not [outcome for outcome in counts if outcome.startswith("WRONG")]
    if sizes.minutes / 6 >= SETTLED_MINUTES:
        assert grown(samples[2], samples[-1], SLACK) == []
