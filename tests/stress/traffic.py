"""Traffic of all kinds at once, over gRPC, HTTP, `generate` and streams.

It has every task, repeated and new images, and among them damaged images, bad options, timeouts that are too short,
clients that cancel, and connections that break off. Each
kind has the outcomes that are allowed; anything else, in particular no response, is WRONG.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from florence2.errors import Florence2Error
from florence2.tasks import TASKS, TaskInput
from florence2_client import AsyncClient
from florence2_client.transports import open_async_transport, parse_url
from tests.stress import images
from tests.stress.images import DAMAGED, ENSEMBLE, UNUSUAL, request
from tests.stress.serving import kind_of

SILENCE = 120.0  # seconds without a response
Tensors = dict[str, np.ndarray[Any, Any]]


class Traffic:
    """Each method is one kind of request and returns its outcome: a finish reason or the name of an error."""

    def __init__(self, grpc_url: str, http_url: str, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.grpc_url, self.http_url = grpc_url, http_url
        self.grpc = open_async_transport(parse_url(grpc_url))
        self.http = open_async_transport(parse_url(http_url))
        self.streaming = AsyncClient(grpc_url, retry_for=0)
        self.known = [images.good(self.chance) for _ in range(5)]  # which are in the encoder's cache
        self.remembered: list[tuple[Tensors, bytes]] = []

    async def close(self) -> None:
        for connection in (self.grpc, self.http, self.streaming):
            await connection.close()

    def request(self, image: bytes | None = None, **more: np.ndarray[Any, Any]) -> Tensors:
        """Return a random task about an image, by default a good one, with a mostly short answer."""
        known = self.chance.random() < 0.3
        image = image if image is not None else self.chance.choice(self.known) if known else self.new_image()
        token = self.chance.choice(list(TASKS))
        if TASKS[token].input is not TaskInput.NONE:
            text = b"a red star" if TASKS[token].input is TaskInput.TEXT else b"<loc_100><loc_100><loc_800><loc_900>"
            more["TEXT"] = np.array([text], np.object_)
        options = {
            "MAX_NEW_TOKENS": np.array([self.chance.choice((4, 8, 16, 60))], np.int32),
            "NUM_BEAMS": np.array([self.chance.choice((1, 1, 3, 5))], np.int32),
        }
        return request(image, token, **options, **more)

    def new_image(self) -> bytes:
        return images.good(self.chance, self.chance.choice(("PNG", "JPEG", "WEBP")))

    async def remember(self) -> None:
        """Send what `again` will send, while nothing else is in flight."""
        for image in self.known:
            for token in ("<CAPTION>", "<OD>"):
                inputs = request(image, token, MAX_NEW_TOKENS=np.array([24], np.int32))
                outputs = await self.grpc.infer(ENSEMBLE, inputs, None)
                self.remembered.append((inputs, outputs["GENERATED_TEXT"][0]))

    # ---- the kinds

    async def again(self) -> str:
        """Expect the same answer as without other requests. (Scores differ by the rounding of a larger batch.)"""
        inputs, text = self.chance.choice(self.remembered)
        outputs = await self.chance.choice((self.grpc, self.http)).infer(ENSEMBLE, inputs, None)
        now = outputs["GENERATED_TEXT"][0]
        return "same" if now == text else f"another answer: {now!r} for {text!r}"

    async def over_grpc(self) -> str:
        return await self._infer(self.grpc, self.request())

    async def over_http(self) -> str:
        return await self._infer(self.http, self.request())

    async def over_generate(self) -> str:
        """Send plain HTTP with the image in JSON."""
        body = {
            name: value[0].decode() if value.dtype == np.object_ and name != "IMAGE" else _plain(value)
            for name, value in self.request().items()
        }
        url = f"{self.http_url}/v2/models/{ENSEMBLE}/generate"

        def post() -> bytes:
            with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=SILENCE) as response:
                return bytes(response.read())

        return str(json.loads(await asyncio.to_thread(post))["FINISH_REASON"])

    async def streamed(self) -> str:
        last = None
        async for result in self.streaming.stream(self.new_image(), "caption", max_new_tokens=40):
            last = result
        return str(last.finish_reason) if last and last.final else "broke off"

    async def unusual(self) -> str:
        return await self._infer(self.grpc, self.request(UNUSUAL[self.chance.choice(list(UNUSUAL))](self.chance)))

    async def damaged(self) -> str:
        make = DAMAGED[self.chance.choice(list(DAMAGED))]
        return await self._infer(self.chance.choice((self.grpc, self.http)), self.request(make(self.chance)))

    async def flipped(self) -> str:
        return await self._infer(self.grpc, self.request(images.flipped(self.chance)))

    async def bad_option(self) -> str:
        inputs = self.request()
        inputs["NUM_BEAMS"] = np.array([self.chance.choice((0, -1, 1000))], np.int32)
        return await self._infer(self.grpc, inputs)

    async def late(self) -> str:
        """Set a timeout, which is mostly too short, for the server and the client."""
        return await self._infer(
            self.chance.choice((self.grpc, self.http)), self.request(), 10 ** self.chance.uniform(-3, 0)
        )

    async def cancelled(self) -> str:
        call = asyncio.create_task(self._infer(self.grpc, self.request()))
        await asyncio.sleep(10 ** self.chance.uniform(-3, -0.5))
        call.cancel()
        try:
            return await call
        except asyncio.CancelledError:
            return "Cancelled"

    async def stream_left(self) -> str:
        """Read some of a stream and leave."""
        async for _ in self.streaming.stream(self.new_image(), "more_detailed_caption", max_new_tokens=60):
            if self.chance.random() < 0.3:
                break
        return "left"

    async def broken_off(self) -> str:
        """End a connection in the middle of the body, or after it and before the response."""
        body = json.dumps({"IMAGE": _plain(np.array([self.new_image()])), "TASK": "<OD>"}).encode()
        head = f"POST /v2/models/florence2_ensemble/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sent = head.encode() + body[: self.chance.choice((0, len(body) // 2, len(body)))]
        _, writer = await asyncio.open_connection(*self._http_address())
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(self.chance.uniform(0, 0.2))
        if self.chance.random() < 0.5:  # a reset in place of an orderly end
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()
        return "left"

    async def _infer(self, transport: Any, inputs: Tensors, timeout: float | None = None) -> str:
        try:
            outputs = await transport.infer(ENSEMBLE, inputs, timeout)
        except Florence2Error as error:
            return kind_of(error) if kind_of(error) in EXPECTED else f"{kind_of(error)}: {error}"
        return str(outputs["FINISH_REASON"][0].decode())

    def _http_address(self) -> tuple[str, int]:
        parts = urlsplit(self.http_url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port


def _plain(value: np.ndarray[Any, Any]) -> Any:
    """Return a value for JSON, an image as base64."""
    item = value[0]
    return base64.b64encode(item).decode() if isinstance(item, bytes) else item.item()


ANSWERED = {"stop", "length"}
EXPECTED = {"InvalidRequest", "DeadlineExceeded", "Cancelled", "Unavailable"}


class Kind(NamedTuple):
    share: int
    call: Callable[[Traffic], Awaitable[str]]
    outcomes: set[str]


KINDS = (
    Kind(30, Traffic.over_grpc, ANSWERED),
    Kind(10, Traffic.again, {"same"}),
    Kind(15, Traffic.over_http, ANSWERED),
    Kind(10, Traffic.over_generate, ANSWERED),
    Kind(8, Traffic.streamed, ANSWERED),
    Kind(5, Traffic.unusual, ANSWERED),
    Kind(8, Traffic.damaged, {"InvalidRequest"}),
    Kind(3, Traffic.flipped, ANSWERED | {"InvalidRequest"}),
    Kind(3, Traffic.bad_option, {"InvalidRequest"}),
    Kind(6, Traffic.late, ANSWERED | {"DeadlineExceeded", "Unavailable"}),
    Kind(5, Traffic.cancelled, ANSWERED | {"Cancelled"}),
    Kind(3, Traffic.stream_left, {"left"}),
    Kind(4, Traffic.broken_off, {"left"}),
)


async def send_all(
    traffic: Traffic, seconds: float, rate: float, tell: Callable[[Counter[str]], None], every: float
) -> Counter[str]:
    """Send requests at random and return the number of each outcome; `tell` gets the counts `every` so many seconds."""
    counts: Counter[str] = Counter()
    waiting: set[asyncio.Task[None]] = set()

    async def one(kind: Kind) -> None:
        try:
            outcome = await asyncio.wait_for(kind.call(traffic), SILENCE)
        except asyncio.TimeoutError:
            outcome = "no answer"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        right = outcome in kind.outcomes
        if not right:
            print(f"  WRONG {kind.call.__name__}: {outcome}", flush=True)
        counts[f"{kind.call.__name__}: {outcome}" if right else f"WRONG {kind.call.__name__}: {outcome}"] += 1

    start = due = told = time.monotonic()
    sent = 0
    while due - start < seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        waiting.add(task := asyncio.create_task(one(traffic.chance.choices(KINDS, [kind.share for kind in KINDS])[0])))
        task.add_done_callback(waiting.discard)
        sent += 1
        due += traffic.chance.expovariate(rate)
        if time.monotonic() - told >= every:
            told += every
            tell(counts)
    await asyncio.gather(*waiting)
    assert counts.total() == sent, "a request without exactly one outcome"
    return counts
