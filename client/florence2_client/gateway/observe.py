"""Write the access log, and count for Prometheus. Neither holds an image, a prompt, or an answer."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from florence2.errors import InternalError
from florence2_client.transports.base import REQUEST_HEADERS

TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
TRACE_STATE = re.compile(r"[\x20-\x7e]{1,512}")
ROUTES = (  # others count as one
    "/v1/chat/completions", "/v1/models", "/health", "/metrics", "/label-studio/predict", "/x-anylabeling/v1/predict",
)  # fmt: skip
PROBES = ("/health", "/metrics", "/label-studio/health", "/x-anylabeling/health")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Counts:
    """The gateway's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "florence2_gateway_requests", "Requests by route, status and error", ["route", "status", "error"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "florence2_gateway_request_seconds", "Time from a request to the end of its response", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.running = Gauge(
            "florence2_gateway_running_requests", "Requests without a response", registry=self.registry
        )
        self.tokens = Counter(
            "florence2_gateway_tokens", "Tokens that were read (prompt) and generated (completion)", ["kind"],
            registry=self.registry,
        )  # fmt: skip


def print_line(line: str) -> None:
    """Write a line of the log to standard output."""
    print(line, file=sys.stdout, flush=True)


class Observer:
    """ASGI middleware around everything else.

    What the routes know of a request (`task`, `model`, `tokens`, `error`), they leave in the scope's state. A valid
    `traceparent` of the client goes on to the server with the requests that come of this one.
    """

    def __init__(self, app: ASGIApp, counts: Counts, log: Callable[[str], None] | None = print_line) -> None:
        """`log`: takes the lines of the access log; None for no log."""
        self._app = app
        self._counts = counts
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        scope.setdefault("state", {})
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        trace = TRACE_PARENT.fullmatch(headers.get("traceparent", ""))

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        if trace:
            passed_on = {"traceparent": trace[0]}
            if TRACE_STATE.fullmatch(headers.get("tracestate", "")):
                passed_on["tracestate"] = headers["tracestate"]
            REQUEST_HEADERS.set(passed_on)
        self._counts.running.inc()
        try:
            await self._app(scope, receive, noting)
        except Exception:
            scope["state"].setdefault("error", InternalError.code)
            raise
        finally:
            self._counts.running.dec()
            self._note(scope, status, time.perf_counter() - start, trace[1] if trace else None)

    def _note(self, scope: Scope, status: int, seconds: float, trace: str | None) -> None:
        state, path = scope["state"], scope["path"]
        route = path if path in ROUTES else "other"
        self._counts.requests.labels(route, str(status), state.get("error", "")).inc()
        self._counts.seconds.labels(route).observe(seconds)
        for kind, count in state.get("tokens", {}).items():
            self._counts.tokens.labels(kind).inc(count)
        if self._log is None or (path in PROBES and status == 200):
            return  # probes would fill the log
        address = scope["client"][0] if scope.get("client") else None
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "address": address, "client": state.get("client"), "method": scope["method"], "path": path[:200],
            "status": status, "seconds": round(seconds, 4), "model": state.get("model"), "task": state.get("task"),
            **state.get("tokens", {}), "error": state.get("error"), "trace": trace,
        }  # fmt: skip
        self._log(json.dumps({name: value for name, value in line.items() if value is not None}))
