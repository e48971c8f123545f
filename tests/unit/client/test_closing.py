"""Closing a transport while requests are in progress, against servers that follow a script."""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from florence2.errors import Cancelled, ConnectionFailed
from florence2_client.transports import open_async_transport, open_transport, parse_url
from tests.unit.client.scripted_server import scripted_server

TENSORS = {"TASK": np.array([b"<OD>"], dtype=object)}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_closed_transport_sends_no_request(protocol):
    """A thread that is too late gets one of our errors."""
    with scripted_server(protocol) as (_, url):
        transport = open_transport(parse_url(url))
        transport.close()
        with pytest.raises((Cancelled, ConnectionFailed)):
            transport.infer("fine", TENSORS, 5.0)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_closing_ends_requests_under_way(protocol):
    """A thread that waits for an answer is let go when another closes the transport."""
    with scripted_server(protocol) as (_, url), ThreadPoolExecutor(1) as pool:
        transport = open_transport(parse_url(url))
        waiting = pool.submit(transport.infer, "slow", TENSORS, None)
        time.sleep(0.4)
        start = time.monotonic()
        transport.close()
        assert waiting.exception() is not None
        assert time.monotonic() - start < 0.9


async def request_under_way(script, url):
    """Return a transport, and the task of a request that the server has."""
    transport = open_async_transport(parse_url(url))
    waiting = asyncio.create_task(transport.infer("slow", TENSORS, None))
    while not script.timeouts:
        await asyncio.sleep(0.01)
    return transport, waiting


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_closing_ends_requests_of_asyncio(protocol):
    """A task that waits for an answer, or comes too late, is told so; it is not cancelled itself."""

    async def close_under_way(script, url):
        transport, waiting = await request_under_way(script, url)
        await transport.close()
        return await asyncio.gather(waiting, transport.infer("fine", TENSORS, 5.0), return_exceptions=True)

    with scripted_server(protocol) as (script, url):
        outcomes = asyncio.run(close_under_way(script, url))
    assert [type(outcome) for outcome in outcomes] == [Cancelled, Cancelled]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not tell whether they are being canceled")
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_task_that_is_canceled_before_closing_stays_canceled(protocol):
    """The code that canceled it expects that."""

    async def cancel(script, url):
        transport, waiting = await request_under_way(script, url)
        waiting.cancel()
        await transport.close()
        return await asyncio.gather(waiting, return_exceptions=True)

    with scripted_server(protocol) as (script, url):
        [outcome] = asyncio.run(cancel(script, url))
    assert type(outcome) is asyncio.CancelledError
