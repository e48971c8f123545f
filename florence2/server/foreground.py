"""serve: an embedded server in the foreground, until Ctrl-C or SIGTERM, and again when it dies. `florence2 serve`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from florence2.errors import ServerError
from florence2.server.embedded import EmbeddedServer
from florence2.server.launch import CACHE_MIB, DRAIN_SECONDS

MOST_DEATHS = 5
DEATHS_SECONDS = 300.0


def serve(
    repository: Path,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    model_control: bool = False,
    cache_mib: int = CACHE_MIB,
    stream: bool = False,
    tritonserver: Path | None = None,
    drain_seconds: int = DRAIN_SECONDS,
    connection_age: int | None = None,
) -> int:
    """Serves until a signal and returns 0. To be called in the main thread, which is the one that gets signals.

    When tritonserver or a model's process dies, the server is started again on the same ports. Raises ServerError when
    it cannot start, and when it has died MOST_DEATHS times within DEATHS_SECONDS.
    """
    ports = (http_port, grpc_port, metrics_port)
    deaths: deque[float] = deque(maxlen=MOST_DEATHS)
    with contextlib.suppress(KeyboardInterrupt), _sigterm_interrupts():
        while True:
            try:
                _say(f"Starting Triton Inference Server with {repository}")
                started = time.monotonic()
                with EmbeddedServer(
                    repository,
                    host,
                    *ports,
                    report=_indented,
                    model_control=model_control,
                    cache_mib=cache_mib,
                    stream=stream,
                    tritonserver=tritonserver,
                    drain_seconds=drain_seconds,
                    connection_age=connection_age,
                ) as server:
                    _say(f"Ready after {time.monotonic() - started:.1f} s. Stop with Ctrl-C. Listening on")
                    for url in (server.grpc_url, server.http_url, server.metrics_url):
                        _indented(url)
                    ports = server.ports
                    _wait(server)
            except _Died as death:
                deaths.append(time.monotonic())
                if len(deaths) == MOST_DEATHS and deaths[-1] - deaths[0] < DEATHS_SECONDS:
                    raise ServerError(f"{death}; that was the {MOST_DEATHS}th time in a short while") from death
                _say(f"{death}. Starting again")
    return 0


class _Died(ServerError):
    """A server that was ready is no more."""


def _wait(server: EmbeddedServer) -> None:
    try:
        server.wait()
    except KeyboardInterrupt:
        _say("\nStopping when running requests are answered. Ctrl-C again stops at once.")
        raise
    except ServerError as error:
        raise _Died(str(error)) from error


def _say(line: str) -> None:
    print(line, flush=True)


def _indented(line: str) -> None:
    _say(f"  {line}")


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM acts as Ctrl-C, which itself acts even in a background job of a shell, where it starts out ignored."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
