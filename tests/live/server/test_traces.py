"""OpenTelemetry: the server's traces reach a collector, and join those of clients."""

from __future__ import annotations

import asyncio
import http.server
import json
import random
import threading

import pytest

from florence2.errors import ServerError
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client import AsyncClient
from florence2_client.transports.base import REQUEST_HEADERS
from tests.stress.images import encoded, noise

PARENT = "00f067aa0ba902b7"


@pytest.fixture
def collector():
    """Yield the URL of a collector, and the bodies that it received."""
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()


def spans(received):
    return [
        span
        for body in received
        for resource in body["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_a_request_s_trace_goes_on_through_every_stage(repository, collector):
    url, received = collector
    traces = {"grpc": f"{1:032x}", "http": f"{2:032x}"}

    async def caption(address, trace):
        REQUEST_HEADERS.set({"traceparent": f"00-{trace}-{PARENT}-01"})
        async with AsyncClient(address) as client:
            await client.caption(encoded(noise(random.Random(0), 64, 64)), max_new_tokens=2)

    with EmbeddedServer(ServingOptions.on_free_ports(repository, traces=url)) as server:
        asyncio.run(caption(server.grpc_url, traces["grpc"]))
        asyncio.run(caption(server.http_url, traces["http"]))
    # Triton sends what it has when it stops, at the latest.
    for trace in traces.values():
        found = [span for span in spans(received) if span["traceId"] == trace]
        names = {span["name"] for span in found}
        assert {f"florence2_{stage}" for stage in ("ensemble", "preprocess", "vision", "decoder")} <= names
        assert any(span.get("parentSpanId") == PARENT for span in found)


def test_another_address_is_refused(repository):
    with pytest.raises(ServerError, match="--traces must be"):
        ServingOptions(repository, traces="collector:4317")
