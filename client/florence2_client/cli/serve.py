"""`florence2 serve` and `florence2 ui`: the embedded server and the web page, in the foreground until Ctrl-C."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from florence2.errors import ServerError
from florence2.server import machine
from florence2.server.options import ServingOptions
from florence2_client.cli.arguments import add_connection, add_listening, connection, needing_extra, number, port
from florence2_client.client import Client
from florence2_client.request import LONGEST_TIMEOUT

SERVE_EXAMPLES = """\
examples:
  florence2 export CHECKPOINT && florence2 serve        then, elsewhere: florence2 run street.jpg --task od
  florence2 serve --repository models --host 0.0.0.0    for everyone who can reach this machine

Needs the `serve` extra, on Linux with Python 3.10 to 3.12: pip install 'florence2-triton[serve]'
"""
MOST_CACHE_MIB = 1 << 20  # a TiB
ANSWERS_MIB = 64  # some 20,000 answers
UI_EXAMPLES = """\
examples:
  florence2 serve                                    and, elsewhere:
  florence2 ui                                       then open http://127.0.0.1:7860
  florence2 ui --url http://gpu-box:8000 --host 0.0.0.0     open to everyone who can reach this machine

Needs Gradio: pip install 'florence2-triton[ui]'. The page fetches nothing from the internet.
"""


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Describe `florence2 serve`."""
    parser.description = "Serve an exported model with the embedded Triton Inference Server until Ctrl-C."
    parser.epilog = SERVE_EXAMPLES
    parser.set_defaults(command=serve, **dataclasses.asdict(ServingOptions()))
    parser.add_argument("--repository", type=Path, metavar="DIR", help="made by export (default: %(default)s)")
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 is every address (default: %(default)s)")
    for protocol in "http", "grpc", "metrics":
        parser.add_argument(
            f"--{protocol}-port", type=port, metavar="PORT", help="0 picks a free one (default: %(default)s)"
        )
    parser.add_argument(
        "--cache-mib", type=number(int, 0, MOST_CACHE_MIB), metavar="MIB",
        help="memory for the features of recent images, which are not encoded again; 0 turns this off\n"
        "(default: %(default)s, 145 images with Florence-2-base)",
    )  # fmt: skip
    parser.add_argument(
        "--cache-answers", nargs="?", const=ANSWERS_MIB, type=number(int, 0, MOST_CACHE_MIB), metavar="MIB",
        help="keep answers too, in this much memory (64 if no number follows), for requests with the same image,\n"
        "prompt and options (default: keep none)",
    )  # fmt: skip
    parser.add_argument(
        "--stream",
        action="store_true",
        help="serve streaming too (run --stream), with a second language model",
    )
    parser.add_argument(
        "--model-control",
        action="store_true",
        help="let clients on this machine load new versions (see docs/export.md)",
    )
    parser.add_argument(
        "--drain-seconds", type=number(int, 0, LONGEST_TIMEOUT), metavar="S",
        help="time for running requests to finish when the server is stopped (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--connection-age", type=number(int, 1, LONGEST_TIMEOUT), metavar="S",
        help="make gRPC clients reconnect after S seconds, so that they find new replicas (default: never)",
    )  # fmt: skip
    parser.add_argument(
        "--traces", metavar="URL",
        help="send OpenTelemetry traces to this address (OTLP over HTTP), such as http://127.0.0.1:4318/v1/traces",
    )  # fmt: skip
    parser.add_argument(
        "--tritonserver", type=Path, metavar="DIR",
        help="an installation to run instead of the embedded server, such as /opt/tritonserver in NVIDIA's container",
    )  # fmt: skip


def serve(options: argparse.Namespace) -> int:
    """Serve a repository until Ctrl-C; return the server's exit code."""
    return run_server(
        ServingOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ServingOptions)})
    )


def run_server(options: ServingOptions, front: Callable[[str], AbstractContextManager[None]] | None = None) -> int:
    """Serve until Ctrl-C, with something in front of the server (see `foreground.serve`); return the exit code."""
    if not options.tritonserver and (problem := machine.missing()):
        raise ServerError(problem)  # ahead of the packages, which cannot all be installed on an unsupported Python
    with needing_extra("the server", "serve"):
        from florence2.server import folder, foreground
    folder.models_of(options.repository)  # so that a mistake is all that is printed
    return foreground.serve(options, front)


def add_ui(parser: argparse.ArgumentParser) -> None:
    """Describe `florence2 ui`."""
    parser.description = "Serve a web page for a running server: choose an image and tasks, draw a box, see answers."
    parser.epilog = UI_EXAMPLES
    parser.set_defaults(command=serve_page)
    add_listening(parser, 7860)
    add_connection(parser)


def serve_page(options: argparse.Namespace) -> int:
    """Serve the web page until Ctrl-C, or SIGTERM, which containers send."""
    with needing_extra("the page", "ui"):
        from florence2_client.page import served_page
    stopped = threading.Event()
    with (
        Client(**connection(options)) as client,
        served_page(client, options.url, options.timeout, options.host, options.port) as url,
    ):
        print(f"The page is at {url} until Ctrl-C; its requests go to {options.url}.", flush=True)
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, lambda _number, _frame: stopped.set())
        stopped.wait()
    return 0
