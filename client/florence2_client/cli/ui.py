"""`florence2 ui`: a web page in front of a running server."""

from __future__ import annotations

import argparse
import signal
import threading

from florence2.errors import Florence2Error
from florence2_client.cli.arguments import add_connection, connection
from florence2_client.client import Client

EXAMPLES = """\
examples:
  florence2 serve                                    and, elsewhere:
  florence2 ui                                       then open http://127.0.0.1:7860
  florence2 ui --url http://gpu-box:8000 --host 0.0.0.0     open to everyone who can reach this machine

Needs Gradio: pip install '.[ui]'. The page fetches nothing from the internet.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve a web page for a running server: choose an image and tasks, draw a box, see answers."
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every address (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, metavar="PORT", help="0 picks a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="give up on a request after S seconds (default: 120)"
    )
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    try:
        from florence2_client.page.serving import served_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise Florence2Error("the page needs Gradio: pip install '.[ui]'") from error
    with (
        Client(**connection(options)) as client,
        served_page(client, options.url, options.timeout, options.host, options.port) as url,
    ):
        print(f"The page is at {url} until Ctrl-C; its requests go to {options.url}.", flush=True)
        _wait_for_a_signal()
    return 0


def _wait_for_a_signal() -> None:
    """Wait for Ctrl-C, or SIGTERM, which containers send."""
    stopped = threading.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda _number, _frame: stopped.set())
    stopped.wait()
