"""`florence2 serve` in a separate process, and clients that keep it busy."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import psutil

from bench.harness import ClosedLoop, processes_in
from florence2.errors import (
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    Florence2Error,
    InternalError,
    InvalidRequest,
    Unavailable,
)
from florence2.server.embedded import model_processes
from florence2_client.transports import open_async_transport, parse_url
from tests.stress import images
from tests.stress.images import ENSEMBLE, request

SILENCE = 60.0  # seconds without a response
BACK = 180.0  # seconds in which a server must be back
CLEAR = {"answered", "Unavailable", "ConnectionFailed", "DeadlineExceeded", "InternalError"}


KINDS = (DeadlineExceeded, ConnectionFailed, Unavailable, InvalidRequest, Cancelled, InternalError)  # subclasses first


def kind_of(error: Florence2Error) -> str:
    """Return the name of the kind that an error belongs to."""
    return next((kind.__name__ for kind in KINDS if isinstance(error, kind)), type(error).__name__)


class Serving:
    """`florence2 serve` in a separate process, with its temporary files in a separate folder."""

    def __init__(self, repository: Path) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="florence2-faults-")
        self.folder = Path(self._temporary.name)
        command = [str(Path(sys.executable).with_name("florence2")), "serve", "--repository", str(repository)]
        ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
        self.process = subprocess.Popen(
            [*command, *ports], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(self.folder)}
        )
        self.lines: list[str] = []

    def __enter__(self) -> Serving:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.strip().endswith("/metrics"):
                break
        else:
            raise RuntimeError("\n".join(self.lines))
        self.grpc_url, self.http_url, self.metrics_url = self.lines[-3:]
        threading.Thread(target=self._read_on, daemon=True).start()
        return self

    def _read_on(self) -> None:
        """Keep reading, because a full pipe would block the server."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def __exit__(self, *_error: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()
        self.process.wait()
        self._temporary.cleanup()

    def server_folder(self) -> Path:
        return next(self.folder.glob("florence2-server-*"))

    def processes(self) -> list[psutil.Process]:
        return processes_in(self.folder)

    def process_of(self, stage: str) -> int:
        """Return the id of tritonserver or of a model's process, the first if it has several."""
        models = model_processes(self.server_folder())
        if stage != "tritonserver":
            return next(process for process, model in models.items() if model.endswith(f"_{stage}"))
        return next(process.pid for process in self.processes() if process.pid not in models)


class Load(ClosedLoop):
    """Clients in a closed loop, each of which waits a moment after an error."""

    def __init__(self, urls: list[str], clients: int, tokens: int = 16, image: bytes | None = None) -> None:
        super().__init__([functools.partial(self._send, number) for number in range(clients)])
        self._urls = [parse_url(urls[number % len(urls)]) for number in range(clients)]
        options = {"MAX_NEW_TOKENS": np.array([tokens], np.int32), "NUM_BEAMS": np.array([1], np.int32)}
        own = [image or images.encoded(images.noise(random.Random(number), 200, 150)) for number in range(clients)]
        self._requests = [request(content, "<CAPTION>", **options) for content in own]

    async def run(self) -> None:
        self._transports = [open_async_transport(url) for url in self._urls]
        await super().run()
        for transport in self._transports:
            await transport.close()

    async def _send(self, number: int) -> str:
        try:
            await asyncio.wait_for(self._transports[number].infer(ENSEMBLE, self._requests[number], None), SILENCE)
        except asyncio.TimeoutError:
            return "SILENCE"
        except Florence2Error as error:
            await asyncio.sleep(0.1)
            return kind_of(error) if kind_of(error) in CLEAR else f"{kind_of(error)}: {error}"
        return "answered"

    def answered_since(self, moment: float) -> float | None:
        """Return when the first response came to a request that was sent after a moment."""
        later = [reply.received for reply in self.replies if reply.sent > moment and reply.outcome == "answered"]
        return min(later, default=None)

    @property
    def clear(self) -> bool:
        """Whether every request has an answer or a clear error."""
        return self.sent == len(self.replies) and set(self.outcomes()) <= CLEAR


@contextlib.asynccontextmanager
async def under_load(serving: Serving, clients: int, warm_up: float = 2.0) -> AsyncIterator[Load]:
    """Run clients meanwhile, from when they get answers until each has its last response."""
    load = Load([serving.grpc_url, serving.http_url], clients)
    task = asyncio.create_task(load.run())
    try:
        await until(lambda: load.outcomes()["answered"] >= clients, BACK)
        await asyncio.sleep(warm_up)
        yield load
    finally:
        load.stopping = True
        await task


async def until(true: Callable[[], object], seconds: float) -> bool:
    """Wait until a condition holds, and return whether it did in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True
