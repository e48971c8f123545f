"""Hours of everything at once on a whole server: one answer or clear error for each request, and does memory stay flat?

    python -m bench.soak_live --repository DIR --minutes 60 --rate 2

Requests arrive at random, by gRPC, HTTP, `generate` and as streams: all tasks, repeated and new pictures, and among
them hostile pictures, bad options, time limits too short, callers who cancel, and connections that break off half way.
Each kind has the outcomes that it may have; anything else, silence above all, is WRONG. Prints a line every twelfth of
the time, and exits with 1 if anything was wrong, or if memory, shared memory, threads or descriptors grew after the
first sixth.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from bench import hostile
from bench.soak import MEMORY_SLACK, usage_of
from florence2.errors import Florence2Error
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2.tasks import TASKS, TaskInput
from florence2_client import AsyncClient
from florence2_client.transports.base import open_async_transport, parse_url

PATIENCE = 120.0  # seconds without an answer are silence
CACHE_MIB = 4  # of features: full before memory is looked at, or filling it would look like growth
MIB = 2**20


class Sample(NamedTuple):
    """Of all the server's processes together; `shared` of its regions in /dev/shm. In MiB, but for the counts."""

    memory: float
    shared: float
    threads: int
    descriptors: int


def sample(server: EmbeddedServer) -> Sample:
    usage = usage_of(processes_of(server))
    shared = sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob(f"{server._shm_prefix}*"))
    return Sample(usage.memory / MIB, shared / MIB, usage.threads, usage.descriptors)


def processes_of(server: EmbeddedServer) -> list[int]:
    """tritonserver and its stubs: everything that runs from the server's folder, but its supervisor."""
    mark = str(server._folder).encode()
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        words = command.read_bytes().split(b"\0")
        if mark in b" ".join(words) and not words[0].endswith(b"python"):
            found.append(int(command.parent.name))
    return found


class Callers:
    """Each method is a caller of one kind and returns the outcome: an answer's finish reason or an error's name."""

    def __init__(self, grpc_url: str, http_url: str, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.grpc_url, self.http_url = grpc_url, http_url
        self.grpc = open_async_transport(parse_url(grpc_url))
        self.http = open_async_transport(parse_url(http_url))
        self.streaming = AsyncClient(grpc_url, retry_for=0)
        self.known = [hostile.good(self.chance) for _ in range(5)]  # the encoder's cache knows them
        self.remembered: list[tuple[dict[str, np.ndarray[Any, Any]], bytes]] = []

    async def close(self) -> None:
        for connection in (self.grpc, self.http, self.streaming):
            await connection.close()

    def question(self, picture: bytes | None = None, **more: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """A random task about a picture, by default a good one; mostly short answers."""
        known = self.chance.random() < 0.3
        picture = picture if picture is not None else self.chance.choice(self.known) if known else self.new_picture()
        token = self.chance.choice(list(TASKS))
        if TASKS[token].input is not TaskInput.NONE:
            text = b"a red star" if TASKS[token].input is TaskInput.TEXT else b"<loc_100><loc_100><loc_800><loc_900>"
            more["TEXT"] = np.array([text], np.object_)
        options = {
            "MAX_NEW_TOKENS": np.array([self.chance.choice((4, 8, 16, 60))], np.int32),
            "NUM_BEAMS": np.array([self.chance.choice((1, 1, 3, 5))], np.int32),
        }
        return hostile.question(picture, token, **options, **more)

    def new_picture(self) -> bytes:
        return hostile.good(self.chance, self.chance.choice(("PNG", "JPEG", "WEBP")))

    async def remember(self) -> None:
        """Asks what `again` will ask, while nothing else goes on."""
        for picture in self.known:
            for token in ("<CAPTION>", "<OD>"):
                asked = hostile.question(picture, token, MAX_NEW_TOKENS=np.array([24], np.int32))
                answer = await self.grpc.infer(hostile.ENSEMBLE, asked, None)
                self.remembered.append((asked, answer["GENERATED_TEXT"][0]))

    # ---- the kinds

    async def again(self) -> str:
        """The answer is the same as it was alone. (Its scores too, but for the rounding of a larger batch.)"""
        asked, text = self.chance.choice(self.remembered)
        answer = await self.chance.choice((self.grpc, self.http)).infer(hostile.ENSEMBLE, asked, None)
        now = answer["GENERATED_TEXT"][0]
        return "same" if now == text else f"another answer: {now!r} for {text!r}"

    async def by_grpc(self) -> str:
        return await self._infer(self.grpc, self.question())

    async def by_http(self) -> str:
        return await self._infer(self.http, self.question())

    async def by_generate(self) -> str:
        """Plain HTTP with the picture in JSON."""
        asked = {
            name: value[0].decode() if value.dtype == np.object_ and name != "IMAGE" else _plain(value)
            for name, value in self.question().items()
        }
        url = f"{self.http_url}/v2/models/{hostile.ENSEMBLE}/generate"

        def post() -> bytes:
            with urllib.request.urlopen(url, json.dumps(asked).encode(), timeout=PATIENCE) as answer:
                return bytes(answer.read())

        return str(json.loads(await asyncio.to_thread(post))["FINISH_REASON"])

    async def streamed(self) -> str:
        last = None
        async for result in self.streaming.stream(self.new_picture(), "caption", max_new_tokens=40):
            last = result
        return str(last.finish_reason) if last and last.final else "broke off"

    async def odd(self) -> str:
        return await self._infer(
            self.grpc, self.question(hostile.ODD[self.chance.choice(list(hostile.ODD))](self.chance))
        )

    async def broken(self) -> str:
        make = hostile.BROKEN[self.chance.choice(list(hostile.BROKEN))]
        return await self._infer(self.chance.choice((self.grpc, self.http)), self.question(make(self.chance)))

    async def flipped(self) -> str:
        return await self._infer(self.grpc, self.question(hostile.flipped(self.chance)))

    async def bad_option(self) -> str:
        asked = self.question()
        asked["NUM_BEAMS"] = np.array([self.chance.choice((0, -1, 1000))], np.int32)
        return await self._infer(self.grpc, asked)

    async def late(self) -> str:
        """The server and the caller both have a time limit, most of which are too short."""
        return await self._infer(
            self.chance.choice((self.grpc, self.http)), self.question(), 10 ** self.chance.uniform(-3, 0)
        )

    async def cancelled(self) -> str:
        call = asyncio.create_task(self._infer(self.grpc, self.question()))
        await asyncio.sleep(10 ** self.chance.uniform(-3, -0.5))
        call.cancel()
        try:
            return await call
        except asyncio.CancelledError:
            return "Cancelled"

    async def stream_left(self) -> str:
        """The caller reads some of a stream and goes."""
        async for _ in self.streaming.stream(self.new_picture(), "more_detailed_caption", max_new_tokens=60):
            if self.chance.random() < 0.3:
                break
        return "left"

    async def broken_off(self) -> str:
        """A connection that ends in the middle of the body, or after it and before the answer."""
        body = json.dumps({"IMAGE": _plain(np.array([self.new_picture()])), "TASK": "<OD>"}).encode()
        head = f"POST /v2/models/florence2_ensemble/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sent = head.encode() + body[: self.chance.choice((0, len(body) // 2, len(body)))]
        _, writer = await asyncio.open_connection(*self._http_address())
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(self.chance.uniform(0, 0.2))
        if self.chance.random() < 0.5:  # a reset instead of an orderly end
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()
        return "left"

    async def _infer(self, transport: Any, asked: dict[str, np.ndarray[Any, Any]], timeout: float | None = None) -> str:
        try:
            outputs = await transport.infer(hostile.ENSEMBLE, asked, timeout)
        except Florence2Error as error:
            return f"{type(error).__name__}" if type(error).__name__ in EXPECTED else f"{type(error).__name__}: {error}"
        return str(outputs["FINISH_REASON"][0].decode())

    def _http_address(self) -> tuple[str, int]:
        parts = urlsplit(self.http_url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port


def _plain(value: np.ndarray[Any, Any]) -> Any:
    """For JSON, a picture as base64."""
    item = value[0]
    return base64.b64encode(item).decode() if isinstance(item, bytes) else item.item()


ANSWERED = {"stop", "length"}
EXPECTED = {"InvalidRequest", "DeadlineExceeded", "Cancelled", "Unavailable"}


class Kind(NamedTuple):
    share: int
    call: Callable[[Callers], Awaitable[str]]
    outcomes: set[str]


KINDS = (
    Kind(30, Callers.by_grpc, ANSWERED),
    Kind(10, Callers.again, {"same"}),
    Kind(15, Callers.by_http, ANSWERED),
    Kind(10, Callers.by_generate, ANSWERED),
    Kind(8, Callers.streamed, ANSWERED),
    Kind(5, Callers.odd, ANSWERED),
    Kind(8, Callers.broken, {"InvalidRequest"}),
    Kind(3, Callers.flipped, ANSWERED | {"InvalidRequest"}),
    Kind(3, Callers.bad_option, {"InvalidRequest"}),
    Kind(6, Callers.late, ANSWERED | {"DeadlineExceeded", "Unavailable"}),
    Kind(5, Callers.cancelled, ANSWERED | {"Cancelled"}),
    Kind(3, Callers.stream_left, {"left"}),
    Kind(4, Callers.broken_off, {"left"}),
)


async def soak(
    callers: Callers, seconds: float, rate: float, tell: Callable[[Counter[str]], None], every: float
) -> Counter[str]:
    """Every request has one count; `tell` hears of them `every` so many seconds."""
    counts: Counter[str] = Counter()
    waiting: set[asyncio.Task[None]] = set()

    async def one(kind: Kind) -> None:
        try:
            outcome = await asyncio.wait_for(kind.call(callers), PATIENCE)
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
        waiting.add(task := asyncio.create_task(one(callers.chance.choices(KINDS, [kind.share for kind in KINDS])[0])))
        task.add_done_callback(waiting.discard)
        sent += 1
        due += callers.chance.expovariate(rate)
        if time.monotonic() - told >= every:
            told += every
            tell(counts)
    await asyncio.gather(*waiting)
    assert counts.total() == sent, "a request without exactly one outcome"
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True, help="an exported repository")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second (default: %(default)s)")
    options = parser.parse_args()
    seconds, taken = 60 * options.minutes, list[Sample]()
    with EmbeddedServer(
        ServingOptions.on_free_ports(options.repository, cache_mib=CACHE_MIB, stream=True), report=_log
    ) as server:
        print(f"{'minutes':>7} {'requests':>9} {'wrong':>6} {'MiB':>7} {'shm MiB':>8} {'threads':>8} {'fds':>5}")
        start = time.monotonic()

        def tell(counts: Counter[str]) -> None:
            now = sample(server)
            taken.append(now)
            wrong = sum(count for outcome, count in counts.items() if outcome.startswith("WRONG"))
            row = f"{(time.monotonic() - start) / 60:7.1f} {counts.total():9d} {wrong:6d} {now.memory:7.1f}"
            print(f"{row} {now.shared:8.1f} {now.threads:8d} {now.descriptors:5d}", flush=True)

        async def all_of_it() -> Counter[str]:
            callers = Callers(server.grpc_url, server.http_url)
            await callers.remember()
            tell(Counter())
            try:
                counts = await soak(callers, seconds, options.rate, tell, seconds / 12)
            finally:
                await callers.close()
            tell(counts)
            return counts

        counts = asyncio.run(all_of_it())
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d}  {outcome}")
    return verdict(taken, counts)


def verdict(taken: list[Sample], counts: Counter[str]) -> int:
    """Exit code. What pools keep after the first sixth is theirs; threads and descriptors may come and go."""
    first, last = taken[2], taken[-1]
    slack = Sample(MEMORY_SLACK / MIB, 1.0, 4, 24)
    grown = [name for name in Sample._fields if getattr(last, name) > getattr(first, name) + getattr(slack, name)]
    wrong = sorted(outcome for outcome in counts if outcome.startswith("WRONG"))
    print(f"grew: {', '.join(grown)}" if grown else "nothing grew")
    print("\n".join(wrong) if wrong else "every request had an outcome that it may have")
    return 1 if grown or wrong else 0


def _log(line: str) -> None:
    if not line.endswith((": loading", ": ready")):
        print(f"  server: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
