"""`florence2 serve`: the embedded server in the foreground."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_REPOSITORY = Path("build/model_repository")  # export's default too
EXAMPLES = """\
examples:
  florence2 export CHECKPOINT && florence2 serve        then, elsewhere: florence2 run street.jpg --task od
  florence2 serve --repository models --host 0.0.0.0    for everyone who can reach this machine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve an exported model with the embedded Triton Inference Server until Ctrl-C."
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="DIR",
        help="made by export (default: %(default)s)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen; 0.0.0.0 is everywhere (default: %(default)s)"
    )
    for protocol, port in ("http", 8000), ("grpc", 8001), ("metrics", 8002):
        help_text = "0 picks a free one (default: %(default)s)"
        parser.add_argument(f"--{protocol}-port", type=int, default=port, metavar="PORT", help=help_text)
    parser.add_argument(
        "--cache-mib",
        type=int,
        default=256,
        metavar="MIB",
        help="memory for pictures that are asked about again, so that they are encoded once; 0 is none\n"
        "(default: %(default)s, 145 pictures of Florence-2-base)",
    )
    parser.add_argument(
        "--stream", action="store_true", help="also answer piece by piece (run --stream), with a second language model"
    )
    parser.add_argument(
        "--model-control", action="store_true", help="let callers have models loaded again (see docs/export.md)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=int,
        default=10,
        metavar="S",
        help="how long a server that is stopped finishes what it was asked (default: %(default)s)",
    )
    parser.add_argument(
        "--connection-age",
        type=int,
        metavar="S",
        help="let callers by gRPC connect anew after so many seconds, to find new replicas (default: never)",
    )
    parser.add_argument(
        "--tritonserver",
        type=Path,
        metavar="DIR",
        help="an installation to run in place of the embedded server, such as /opt/tritonserver in NVIDIA's container",
    )


def run(options: argparse.Namespace) -> int:
    from florence2.server import serve

    return serve(
        options.repository,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        model_control=options.model_control,
        stream=options.stream,
        cache_mib=options.cache_mib,
        tritonserver=options.tritonserver,
        drain_seconds=options.drain_seconds,
        connection_age=options.connection_age,
    )
