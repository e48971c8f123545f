"""`florence2 serve` in a process of its own, and callers who keep it busy. Used by bench.faults and its tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench import hostile
from florence2.errors import Florence2Error
from florence2.server.stubs import STUB, model_processes
from florence2_client.transports.base import open_async_transport, parse_url

SILENCE = 60.0  # seconds without an answer
BACK = 180.0  # seconds in which a server must be back
CLEAR = {"answered", "Unavailable", "ConnectionFailed", "DeadlineExceeded", "InternalError"}


class Serving:
    """`florence2 serve` in a process of its own, with its files in a folder of its own."""

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
        """A full pipe would make the server stand still."""
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

    def process_of(self, stage: str) -> int:
        """A model's process, the first if there are several; or tritonserver's own."""
        if stage != "tritonserver":
            models = model_processes(self.server_folder())
            return next(process for process, model in models.items() if model.endswith(f"_{stage}"))
        return next(process for process in self.processes() if command_of(process)[0].endswith(b"/tritonserver"))

    def processes(self) -> list[int]:
        """tritonserver and its stubs."""
        mark = str(self.folder).encode()
        commands = {int(path.name): command_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
        return [
            process
            for process, command in commands.items()
            if command[0].endswith((b"/tritonserver", STUB.encode())) and any(mark in word for word in command)
        ]


def command_of(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


@dataclass
class Load:
    """Callers who ask again as soon as they have an answer, and shortly after an error."""

    urls: list[str]
    callers: int
    tokens: int = 16
    picture: bytes | None = None  # else each caller has one of its own
    replies: list[tuple[float, float, str]] = field(default_factory=list)  # asked, told, outcome
    sent: int = 0
    stopping: bool = False

    async def run(self) -> None:
        await asyncio.gather(*(self._caller(number) for number in range(self.callers)))

    async def _caller(self, number: int) -> None:
        transport = open_async_transport(parse_url(self.urls[number % len(self.urls)]))
        picture = self.picture or hostile.encoded(hostile.noise(random.Random(number), 200, 150))
        asked = hostile.question(
            picture, "<CAPTION>", MAX_NEW_TOKENS=np.array([self.tokens], np.int32), NUM_BEAMS=np.array([1], np.int32)
        )
        while not self.stopping:
            self.sent += 1
            start = time.monotonic()
            try:
                await asyncio.wait_for(transport.infer(hostile.ENSEMBLE, asked, None), SILENCE)
                outcome = "answered"
            except asyncio.TimeoutError:
                outcome = "SILENCE"
            except Florence2Error as error:
                outcome = type(error).__name__
                if outcome not in CLEAR:
                    outcome += f": {error}"
            self.replies.append((start, time.monotonic(), outcome))
            if outcome != "answered":
                await asyncio.sleep(0.1)
        await transport.close()

    def counts(self, since: float = 0.0) -> Counter[str]:
        return Counter(outcome for _, told, outcome in self.replies if told >= since)

    def answered_since(self, moment: float) -> float | None:
        """When the first answer came to a question that was asked after `moment`."""
        return min(
            (told for asked, told, outcome in self.replies if asked > moment and outcome == "answered"), default=None
        )

    @property
    def clear(self) -> bool:
        """Whether everybody heard something, and nothing that nobody understands."""
        return self.sent == len(self.replies) and set(self.counts()) <= CLEAR


@contextlib.asynccontextmanager
async def under_load(serving: Serving, callers: int, warm_up: float = 2.0) -> AsyncIterator[Load]:
    """Runs load meanwhile, once it is being answered; waits for every caller's last reply."""
    load = Load([serving.grpc_url, serving.http_url], callers)
    task = asyncio.create_task(load.run())
    try:
        await until(lambda: load.counts()["answered"] >= callers, BACK)
        await asyncio.sleep(warm_up)
        yield load
    finally:
        load.stopping = True
        await task


async def until(true: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True
