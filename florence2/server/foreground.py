"""serve: an embedded server in the foreground, until Ctrl-C or SIGTERM. Called by `florence2 serve`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from florence2.server.embedded import EmbeddedServer


def serve(
    repository: Path,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    model_control: bool = False,
) -> int:
    """Serves until a signal and returns 0. To be called in the main thread, which is the one that gets signals.

    Raises ServerError when the server cannot start, and when it stops by itself.
    """
    started = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), _sigterm_interrupts():
        _say(f"Starting Triton Inference Server with {repository}")
        ports = (http_port, grpc_port, metrics_port)
        with EmbeddedServer(repository, host, *ports, report=_indented, model_control=model_control) as server:
            _say(f"Ready after {time.monotonic() - started:.1f} s. Stop with Ctrl-C. Listening on")
            for url in (server.grpc_url, server.http_url, server.metrics_url):
                _indented(url)
            try:
                server.wait()
            except KeyboardInterrupt:
                _say("\nStopping when running requests are answered. Ctrl-C again stops at once.")
    return 0


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
