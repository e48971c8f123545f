"""A short form of the mixed traffic in tests/stress, which lasts an hour."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.stress.traffic import Traffic, send_all


def test_every_request_of_mixed_traffic_has_an_allowed_outcome(server):
    async def send() -> Counter[str]:
        traffic = Traffic(server.grpc_url, server.http_url)
        await traffic.remember()
        try:
            return await send_all(traffic, seconds=4, rate=10, tell=lambda counts: None, every=1)
        finally:
            await traffic.close()

    counts = asyncio.run(send())
    assert counts.total() > 10
    assert not [outcome for outcome in counts if outcome.startswith("WRONG")]
