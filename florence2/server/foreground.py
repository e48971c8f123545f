"""serve: run an embedded server in the foreground until Ctrl-C or SIGTERM, and restart it whenever it dies."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import FrameType

from florence2.server.embedded import EmbeddedServer, ServerDied
from florence2.server.options import ServingOptions

DEATHS_SECONDS = 300
LONGEST_PAUSE = 32  # seconds before a restart


def serve(options: ServingOptions, front: Callable[[str], AbstractContextManager[None]] | None = None) -> int:
    """Serve until a signal and return 0. Call it in the main thread, the one that gets signals.

    `front` stands in front of the server: it gets the server's gRPC URL, is entered when the server is first ready, and
    stays while the server starts again. It is left before the server stops, so that what it sent is answered.

    When tritonserver or a model's process dies, the server starts again on the same ports, after pauses of 0, 1, 2, 4
    and at last LONGEST_PAUSE seconds if it dies often: clients can crash Triton 2.51, so a number of deaths is no
    reason to give up. Raise ServerError if it does not become ready.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGTERM acts like Ctrl-C. In a shell's background job Ctrl-C is ignored unless it has a handler of ours.
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    deaths: list[float] = []
    fronts = ExitStack()
    try:
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
                        if front:
                            fronts.enter_context(front(server.grpc_url))
                            front = None
                        server.wait()
                    except KeyboardInterrupt:
                        _print("\nStopping when running requests are answered. Ctrl-C again stops at once.")
                        fronts.close()
                        raise
            except ServerDied as death:
                now = time.monotonic()
                deaths = [*(earlier for earlier in deaths if now - earlier < DEATHS_SECONDS), now]
                pause = min(2 ** len(deaths) // 4, LONGEST_PAUSE)
                often = f" in {pause} s, as it died {len(deaths)} times within {DEATHS_SECONDS // 60} minutes"
                _print(f"{death}. Starting again{often if pause else ''}")
                time.sleep(pause)
    except KeyboardInterrupt:
        return 0
    finally:
        fronts.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(line: str) -> None:
    print(line, flush=True)


def _print_indented(line: str) -> None:
    _print(f"  {line}")
