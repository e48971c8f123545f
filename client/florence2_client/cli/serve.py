"""`florence2 serve`: the embedded server in the foreground."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from florence2.errors import Florence2Error, ServerError
from florence2.server import machine
from florence2.server.options import ServingOptions

EXAMPLES = """\
examples:
  florence2 export CHECKPOINT && florence2 serve        then, elsewhere: florence2 run street.jpg --task od
  florence2 serve --repository models --host 0.0.0.0    for everyone who can reach this machine

Needs the `serve` extra, on Linux with Python 3.10 to 3.12: pip install 'florence2-triton[serve]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve an exported model with the embedded Triton Inference Server until Ctrl-C."
    parser.epilog = EXAMPLES
    parser.set_defaults(**dataclasses.asdict(ServingOptions()))
    parser.add_argument("--repository", type=Path, metavar="DIR", help="made by export (default: %(default)s)")
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 is every address (default: %(default)s)")
    for protocol in "http", "grpc", "metrics":
        parser.add_argument(
            f"--{protocol}-port", type=int, metavar="PORT", help="0 picks a free one (default: %(default)s)"
        )
    parser.add_argument(
        "--cache-mib", type=int, metavar="MIB",
        help="memory to keep the features of images, so that an image is encoded once; 0 is none\n"
        "(default: %(default)s, 145 images with Florence-2-base)",
    )  # fmt: skip
    parser.add_argument(
        "--stream",
        action="store_true",
        help="serve streaming too (run --stream), with a second language model",
    )
    parser.add_argument(
        "--model-control", action="store_true", help="let clients load models again (see docs/export.md)"
    )
    parser.add_argument(
        "--drain-seconds", type=int, metavar="S",
        help="time for running requests to finish when the server is stopped (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--connection-age", type=int, metavar="S",
        help="make gRPC clients reconnect after so many seconds, to find new replicas (default: never)",
    )  # fmt: skip
    parser.add_argument(
        "--tritonserver", type=Path, metavar="DIR",
        help="an installation to run instead of the embedded server, such as /opt/tritonserver in NVIDIA's container",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    if not options.tritonserver and (problem := machine.missing()):
        raise ServerError(problem)  # ahead of the packages, which cannot all be installed on an unsupported Python
    try:
        from florence2.server.foreground import serve
    except ModuleNotFoundError as error:
        raise Florence2Error(
            f"the server needs more packages ({error}); run: pip install 'florence2-triton[serve]'"
        ) from error
    return serve(
        ServingOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ServingOptions)})
    )
