"""Decide who may send how much: API keys, rates, requests at the same time, and the size of a body."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from florence2_client.gateway.errors import Refused, error_response

WITHOUT_KEY = (  # and what the page of /docs loads
    "/health", "/docs", "/openapi.json",
    # which tell and change nothing:
    "/label-studio/", "/label-studio/health", "/label-studio/webhook", "/x-anylabeling/health",
)  # fmt: skip
STATIC = "/static-offline-docs"
BODY_SECONDS = 60.0  # to receive a body
MOST_CLIENTS = 10_000  # whose use is remembered
MOST_DIGITS = 18  # of a Content-Length; Python refuses to read numbers of thousands


@dataclass(frozen=True)
class Limits:
    """What one key may do, or one address where there are no keys. None is no limit."""

    requests_per_minute: float | None = None
    concurrency: int | None = None
    body_bytes: int = 64 * 2**20


NO_LIMITS = Limits()


@dataclass
class Use:
    """What one client does. `tokens` of the bucket are requests that it may send at once."""

    tokens: float
    since: float  # when `tokens` was right
    running: int = 0


def fingerprint(key: str) -> str:
    """Return the name of a key for logs: the first digits of its SHA-256.

    >>> fingerprint("secret")
    '2bb80d53'
    """
    return hashlib.sha256(key.encode()).hexdigest()[:8]


class Guard:
    """ASGI middleware that refuses what is not permitted before any of it is read.

    The name of the client, a key's fingerprint or an address, is left in the scope's state for the log.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`keys`: with none, every client may send requests, each limited by its address."""
        self._app = app
        self._digests = [(hashlib.sha256(key.encode()).digest(), fingerprint(key)) for key in keys]
        self._limits = limits
        self._clock = clock
        self._uses: OrderedDict[str, Use] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, or answer it with an error."""
        path = scope.get("path", "")
        scope.setdefault("state", {})
        if scope["type"] != "http" or path in WITHOUT_KEY or path.startswith(STATIC):
            await self._app(scope, receive, send)
            return
        try:
            client = scope["state"]["client"] = self._client(scope)
            use = self._admit(client) if scope["method"] == "POST" else None
        except Refused as refusal:
            scope["state"]["error"] = refusal.code
            await error_response(refusal, path=path)(scope, receive, send)
            return
        try:
            await self._app(scope, self._limited(scope, receive), send)
        finally:
            if use:
                use.running -= 1

    def _client(self, scope: Scope) -> str:
        """Return who sends the request. Raise Refused without a valid key where one is needed."""
        if not self._digests:
            return scope["client"][0] if scope.get("client") else "unknown"
        headers = dict(scope["headers"])
        header = headers.get(b"authorization") or (b"Token " + headers[b"token"] if headers.get(b"token") else b"")
        digest = hashlib.sha256(_key_in(header)).digest()
        # All keys are compared, each in constant time, so that the time tells nothing about them.
        found = [name for known, name in self._digests if hmac.compare_digest(known, digest)]
        if not found:
            what = "the API key is not valid" if header else "an API key is required"
            raise Refused(401, "INVALID_API_KEY", f"{what}; send it as Authorization: Bearer KEY")
        return found[0]

    def _admit(self, client: str) -> Use:
        """Count a request that begins. Raise Refused if the client sends too many."""
        now, limits = self._clock(), self._limits
        burst = max(1.0, limits.requests_per_minute or 0.0)
        use = self._uses.pop(client, None) or Use(burst, now)
        self._uses[client] = use  # the last one now
        idle = next(iter(self._uses))
        if len(self._uses) > MOST_CLIENTS and not self._uses[idle].running:
            del self._uses[idle]
        if limits.concurrency is not None and use.running >= limits.concurrency:
            sentence = f"{limits.concurrency} requests of this client are running; wait for one to end"
            raise Refused(429, "TOO_MANY_REQUESTS", sentence, retry_after=1)
        if limits.requests_per_minute is not None:
            rate = limits.requests_per_minute / 60
            use.tokens, use.since = min(burst, use.tokens + (now - use.since) * rate), now
            if use.tokens < 1:
                sentence = f"a client may send {limits.requests_per_minute:g} requests per minute"
                wait = math.ceil((1 - use.tokens) / rate)
                raise Refused(429, "RATE_LIMITED", sentence, retry_after=wait)
            use.tokens -= 1
        use.running += 1
        return use

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return `receive` with a limit on the body's size, and on the time that it takes to come in."""
        most = self._limits.body_bytes
        deadline = self._clock() + BODY_SECONDS
        received, complete = 0, False
        too_large = HTTPException(413, f"the request is larger than {most >> 20} MiB")
        length = dict(scope["headers"]).get(b"content-length", b"0")

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # the client's departure
            if length.isdigit() and (len(length) > MOST_DIGITS or int(length) > most):
                raise too_large
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - self._clock()))
            except asyncio.TimeoutError as error:
                raise HTTPException(
                    408, f"the request took longer than {BODY_SECONDS:.0f} seconds to arrive"
                ) from error
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > most:
                raise too_large
            return message

        return limited


def _key_in(header: bytes) -> bytes:
    """Return the key in an Authorization header: of OpenAI's clients, or of labeling tools.

    Label Studio sends keys as the password of a user with any name; X-AnyLabeling as `Token`, a header of its own.

    >>> _key_in(b"Bearer secret"), _key_in(b"Basic bWU6c2VjcmV0"), _key_in(b"secret")
    (b'secret', b'secret', b'')
    """
    scheme, _, given = header.partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
    return given.strip() if scheme.lower() in (b"bearer", b"token") else b""
