"""The `florence2` program: `florence2_client.cli.main`, with no traceback on Ctrl-C from its first to its last moment.

It is a package of its own because the import of any part of `florence2_client` takes a third of a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    sys.unraisablehook = _report_unraisable
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a background job ignores Ctrl-C
    try:
        if heeds:
            signal.signal(signal.SIGINT, _exit_at_once)
        from florence2_client import cli

        cli.parser()  # imports the rest; a KeyboardInterrupt inside an extension module becomes an ImportError
        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if heeds:
            signal.signal(signal.SIGINT, _exit_at_once)  # the interpreter's own cleanup would print a traceback


def _report_unraisable(error: sys.UnraisableHookArgs) -> None:
    """Report an error as usual, unless it is that of an object that Ctrl-C left half made and that cannot clean up."""
    if not (isinstance(error.exc_value, AttributeError) and getattr(error.object, "__name__", "") == "__del__"):
        sys.__unraisablehook__(error)


def _exit_at_once(*_: Any) -> None:
    os._exit(INTERRUPTED)
