"""`florence2 health`: the probe of containers and supervisors."""

from __future__ import annotations

import argparse
import sys

from florence2_client.client import DEFAULT_MODEL
from florence2_client.transport import DEFAULT_URL

EXAMPLES = """\
examples:
  florence2 health
  florence2 health --url http://gpu-box:8000 --timeout 5 || systemctl restart florence2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Ask a server for one token about a tiny picture. Exit code 0 if it is alive, 1 and a sentence if it is not.\n"
        "Triton's own health routes do not notice a dead model process."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("--url", default=DEFAULT_URL, metavar="U", help="as of `florence2 run` (default: %(default)s)")
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="the ensemble (default: %(default)s)")
    parser.add_argument(
        "--metrics",
        metavar="U",
        help="Triton's metrics, which tell a busy server from one that hangs (default: http://HOST:8002/metrics)",
    )
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    from florence2_client.health import check_health

    health = check_health(options.url, options.model, options.timeout, metrics=options.metrics)
    print(health.sentence, file=sys.stdout if health.alive else sys.stderr)
    return 0 if health.alive else 1
