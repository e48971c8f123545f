"""A client that disconnects ends the work for it. In the event loop, because TestClient cannot disconnect."""

from __future__ import annotations

import asyncio
import json

import pytest

from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.gateway.images import ImageSource


@pytest.mark.parametrize("stream", [False, True])
def test_the_image_is_no_longer_fetched(monkeypatch, stream):
    log = []

    async def read(_self, url):
        log.append("fetching")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    monkeypatch.setattr(ImageSource, "read", read)
    parts = [{"type": "text", "text": "caption"}, {"type": "image_url", "image_url": {"url": "https://example.com/"}}]
    body = {"model": "florence2", "messages": [{"role": "user", "content": parts}], "stream": stream}
    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "client": ("1.2.3.4", 5), "http_version": "1.1",
        "scheme": "http", "server": ("127.0.0.1", 80), "root_path": "",
    }  # fmt: skip

    async def scenario():
        app, arrivals, sent = make_app(GatewayOptions(), None), asyncio.Queue(), asyncio.Queue()
        await arrivals.put({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        async with app.router.lifespan_context(app):
            call = asyncio.create_task(app(scope, arrivals.get, sent.put))
            while not log:
                await asyncio.sleep(0)
            await arrivals.put({"type": "http.disconnect"})
            await call
        return await sent.get()

    assert asyncio.run(scenario())["status"] == 499
    assert log == ["fetching", "cancelled"]
