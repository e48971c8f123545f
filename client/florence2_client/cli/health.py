"""`florence2 health`: the probe of containers and supervisors.

Is a server alive? A real question through all its stages, since Triton's own health routes say 200 when one is dead.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from florence2.errors import ConnectionFailed, DeadlineExceeded, Florence2Error
from florence2_client.client import DEFAULT_MODEL
from florence2_client.request import Tensors, build_request
from florence2_client.transports.base import DEFAULT_URL, Transport, open_transport, parse_url

EXAMPLES = """\
examples:
  florence2 health
  florence2 health --url http://gpu-box:8000 --timeout 5 || systemctl restart florence2
"""
NOT_HEALTHY = re.compile(r"Stub process '(?P<model>.+?)_\d+_\d+' is not healthy")
BUSY = "queue is full"  # the decoder's own words: it could not say so were it dead
# More than there are preprocessing processes, all at once: one of those may be dead and the others hide it.
PREPROCESS_PROBES = 4
METRICS_PORT = 8002
METRICS_SECONDS = 2.0


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
    health = check_health(options.url, options.model, options.timeout, metrics=options.metrics)
    print(health.sentence, file=sys.stdout if health.alive else sys.stderr)
    return 0 if health.alive else 1


@dataclass(frozen=True)
class Health:
    """`sentence` says what was found."""

    alive: bool
    sentence: str


def check_health(
    url: str,
    model: str = DEFAULT_MODEL,
    timeout: float = 30.0,
    *,
    metrics: str | None = None,
    transport: Transport | None = None,
) -> Health:
    """Asks for one token about a tiny picture, in at most `timeout` seconds. A server too busy to take it is alive.

    `metrics` is the URL of Triton's metrics, where those who were answered meanwhile are counted: by default port 8002
    of the same host.
    """
    address = parse_url(url)
    transport = transport or open_transport(address)
    metrics = metrics or f"http://{address.host}:{METRICS_PORT}/metrics"
    start, work = time.monotonic(), _work_done(metrics, model)
    try:
        _ask_all_stages(transport, model, start + timeout)
    except DeadlineExceeded:
        if (work_now := _work_done(metrics, model)) is not None and work is not None and work_now > work:
            return Health(True, f"alive, but busy: no answer within {timeout:g} s, while others were answered")
        return Health(False, f"no answer within {timeout:g} s: a stage hangs, or the server is overloaded")
    except Florence2Error as error:
        return _diagnosis(error)
    finally:
        transport.close()
    return Health(True, f"alive: all stages answered in {time.monotonic() - start:.1f} s")


def _ask_all_stages(transport: Transport, model: str, deadline: float) -> None:
    def ask(asked_model: str) -> None:
        transport.infer(asked_model, _question(), max(0.001, deadline - time.monotonic()))

    preprocess = f"{model.removesuffix('_ensemble')}_preprocess"
    with ThreadPoolExecutor(PREPROCESS_PROBES) as pool:
        list(pool.map(ask, [preprocess] * PREPROCESS_PROBES))
    ask(model)


def _question() -> Tensors:
    """A new colour each time, or a response cache would answer for a dead encoder."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), tuple(os.urandom(3))).save(picture, "PNG")
    return build_request(picture.getvalue(), "caption", max_new_tokens=1, num_beams=1).tensors


def _work_done(url: str, model: str) -> float | None:
    """What a server counts of its work as a whole: answers, and rounds of the decoder. None if it does not tell."""
    prefix = re.escape(model.removesuffix("_ensemble"))
    counts = re.compile(
        rf'^(?:nv_inference_request_success{{model="{prefix}_ensemble"|florence2_(?:steps|requests)_total'
        rf'{{[^}}]*model="{prefix}_decoder")[^}}]*}} (\S+)$',
        re.MULTILINE,
    )
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=METRICS_SECONDS) as answer:
        return sum(map(float, counts.findall(answer.read().decode())))
    return None


def _diagnosis(error: Florence2Error) -> Health:
    sentence = str(error)
    if BUSY in sentence:
        return Health(True, f"alive, but busy: {sentence}")
    if isinstance(error, ConnectionFailed):
        return Health(False, sentence)
    dead = NOT_HEALTHY.search(sentence)
    return Health(False, f"a process of {dead['model']} is dead or hangs" if dead else f"not working: {sentence}")
