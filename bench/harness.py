"""What benchmarks and stress tests share: a server, its processes and their memory, and clients in a closed loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions

MIB = 2**20
SECONDS_BETWEEN_SAMPLES = 0.5
FLORENCE2 = str(Path(sys.executable).with_name("florence2"))  # the command


def embedded_server(
    repository: Path, report: Callable[[str], None] = lambda _line: None, **options: Any
) -> EmbeddedServer:
    """Return a server of this repository on free ports, to be entered."""
    return EmbeddedServer(ServingOptions.on_free_ports(repository, **options), report=report)


# ---- processes and memory


class Usage(NamedTuple):
    """What some processes use together; `shared` is a server's regions in /dev/shm. Memory is in MiB."""

    memory: float
    shared: float
    threads: int
    descriptors: int


def grown(first: NamedTuple, last: NamedTuple, slack: NamedTuple) -> list[str]:
    """Return the names of the fields that grew by more than their slack."""
    values = zip(first._fields, first, last, slack, strict=True)
    return [name for name, before, after, more in values if after > before + more]


def usage_of(processes: Iterable[psutil.Process], shared: float = 0.0) -> Usage:
    """Return the sum over the processes that still run."""
    memory = threads = descriptors = 0
    for process in processes:
        try:
            with process.oneshot():
                memory += process.memory_info().rss
                threads += process.num_threads()
                descriptors += process.num_fds()
        except psutil.NoSuchProcess:
            continue
    return Usage(memory / MIB, shared, threads, descriptors)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return tritonserver and its models' processes, which run files of this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if any(str(folder) in word for word in words) and words[0].endswith(("/tritonserver", "_stub")):
            found.append(process)
    return found


def server_usage(server: EmbeddedServer) -> Usage:
    """Return what an embedded server uses, including its shared memory."""
    return usage_of(processes_in(server._folder), shared_memory(server))


def shared_memory(server: EmbeddedServer) -> float:
    """Return the MiB of an embedded server's regions in /dev/shm."""
    return sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob(f"{server._shm_prefix}*")) / MIB


def descendants() -> list[psutil.Process]:
    """Return all processes that this one has started, directly or not."""
    return psutil.Process().children(recursive=True)


def proportional_memory(process: psutil.Process) -> float:
    """Return the proportional set size in MiB, in which shared pages count once; 0 if the process has ended."""
    try:
        return float(process.memory_full_info().pss) / MIB
    except psutil.Error:
        return 0.0


class Peak:
    """The highest values of some measurements while a `with` block lasts, sampled in a thread."""

    def __init__(self, measure: Callable[[], Sequence[float]]) -> None:
        self.values: Sequence[float] = ()
        self._measure = measure
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)

    def __enter__(self) -> Peak:
        self.values = self._measure()
        self._thread.start()
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
            self.values = [*map(max, self.values, self._measure())]


# ---- clients


class Reply(NamedTuple):
    """One request: the number of its client, when it was sent and answered, and what came of it."""

    client: int
    sent: float
    received: float
    outcome: Any

    @property
    def seconds(self) -> float:
        return self.received - self.sent


@dataclass
class ClosedLoop:
    """Clients that send their next request as soon as the last one has its response.

    Each call sends one request and returns its outcome. The loop ends after `requests` of all clients together, or once
    `stopping` is set.
    """

    calls: Sequence[Callable[[], Awaitable[Any]]]
    requests: int | None = None
    replies: list[Reply] = field(default_factory=list)
    sent: int = 0
    stopping: bool = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(len(self.calls))))

    async def _client(self, number: int) -> None:
        while not self.stopping and self.sent != self.requests:
            self.sent += 1
            start = time.monotonic()
            outcome = await self.calls[number]()
            self.replies.append(Reply(number, start, time.monotonic(), outcome))

    def outcomes(self, since: float = 0.0) -> Counter[Any]:
        """Return how often each outcome was received since a moment."""
        return Counter(reply.outcome for reply in self.replies if reply.received >= since)
