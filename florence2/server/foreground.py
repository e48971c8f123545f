"""serve: run an embedded server in the foreground until Ctrl-C or SIGTERM, and restart it when it dies."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType

from florence2.errors import ServerError
from florence2.server.embedded import EmbeddedServer, ServerDied
from florence2.server.options import ServingOptions

MOST_DEATHS = 5
DEATHS_SECONDS = 300.0


def serve(options: ServingOptions) -> int:
    """Serve until a signal and return 0. Call it in the main thread, the one that gets signals.

    When tritonserver or a model's process dies, the server starts again on the same ports. Raise ServerError if it
    cannot start, and after MOST_DEATHS deaths within DEATHS_SECONDS.
    """
    deaths: deque[float] = deque(maxlen=MOST_DEATHS)
    with contextlib.suppress(KeyboardInterrupt), _sigterm_interrupts():
        while True:
            try:
                _print(f"Starting Triton Inference Server with {options.repository}")
                started = time.monotonic()
                with EmbeddedServer(options, report=_print_indented) as server:
                    _print(f"Ready after {time.monotonic() - started:.1f} s. Stop with Ctrl-C. Listening on")
                    for url in (server.grpc_url, server.http_url, server.metrics_url):
                        _print_indented(url)
                    options = server.options
                    try:
                        server.wait()
                    except KeyboardInterrupt:
                        _print("\nStopping when running requests are answered. Ctrl-C again stops at once.")
                        raise
            except ServerDied as death:
                deaths.append(time.monotonic())
                if len(deaths) == MOST_DEATHS and deaths[-1] - deaths[0] < DEATHS_SECONDS:
                    raise ServerError(
                        f"{death}; that was the {MOST_DEATHS}th time within {DEATHS_SECONDS / 60:.0f} minutes, "
                        "so the server is not started again"
                    ) from death
                _print(f"{death}. Starting again")
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def _print_indented(line: str) -> None:
    _print(f"  {line}")


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM act like Ctrl-C, and make Ctrl-C work in a shell's background job, which ignores it at first."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
