"""`florence2 health`: the probe for containers and supervisors.

It sends real requests through all stages, because Triton's own health routes answer 200 even when a stage is dead.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from PIL import Image

from florence2.errors import ConnectionFailed, DeadlineExceeded, Florence2Error, InvalidRequest, QueueFull
from florence2_client.cli.arguments import add_connection, connection, seconds
from florence2_client.cli.console import pasteable
from florence2_client.methods import DEFAULT_MODEL
from florence2_client.request import build_request
from florence2_client.transports import Address, Tls, Transport, open_transport, parse_url
from florence2_client.transports.http import fetch

EXAMPLES = """\
examples:
  florence2 health
  florence2 health --url http://gpu-box:8000 --timeout 5 || systemctl restart florence2
"""
NOT_HEALTHY = re.compile(r"Stub process '(?P<model>.+?)_\d+_\d+' is not healthy")
PROBES = 4  # more than there are processes of preprocess, all at once: the others would hide a dead one
METRICS_PORT = 8002
METRICS_SECONDS = 2.0
# The decoder publishes its counters once a second, so until then they may grow by work done before a stage hung.
SETTLING_SECONDS = 3.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Health:
    """What the probe found."""

    alive: bool
    sentence: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send a tiny image to a server and generate one token. Exit code 0 if it is alive, 1 with a reason if not.\n"
        "An overloaded server is alive as long as it makes progress. Triton's health routes miss a dead model process."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    parser.add_argument(
        "--metrics", metavar="U",
        help="Triton's metrics, to tell an overloaded server from one that hangs\n(default: http://HOST:8002/metrics)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="S", help="give up after S seconds (default: %(default)g)"
    )
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Print what the probe found; return 0 if the server is alive."""
    health = check_health(**connection(options), timeout=options.timeout, metrics=options.metrics)
    print(pasteable(health.sentence), file=sys.stdout if health.alive else sys.stderr)
    return 0 if health.alive else 1


def check_health(
    url: str,
    model: str = DEFAULT_MODEL,
    timeout: float = 30.0,
    *,
    headers: Mapping[str, str] | None = None,
    tls: Tls | None = None,
    metrics: str | None = None,
    transport: Transport | None = None,
) -> Health:
    """Generate one token through every stage, within `timeout` seconds.

    A server that is too busy for that is alive if the counters of completed work grow meanwhile. `metrics` is the URL
    of Triton's metrics, by default port 8002 of the same host. Without metrics the probe itself must be answered.
    """
    address = parse_url(url, headers, tls)
    counters = parse_url(metrics or f"http://{address.host}:{METRICS_PORT}/metrics")
    if not counters.scheme.startswith("http"):
        raise InvalidRequest(f"metrics have an HTTP URL, such as http://127.0.0.1:8002/metrics, not {metrics!r}")
    transport = transport or open_transport(address)
    start = time.monotonic()
    pool = ThreadPoolExecutor(PROBES + 1)
    probe = pool.submit(_probe_until, start + timeout, pool, transport, model)
    try:
        if _progresses(probe, counters, model, start + min(SETTLING_SECONDS, timeout / 2)):
            return Health(True, "alive, but busy: the probe has to wait, while other requests make progress")
        probe.result()
    except (DeadlineExceeded, QueueFull) as error:
        return Health(False, f"{error}; no other request made progress: a stage hangs, or the server is overloaded")
    except ConnectionFailed as error:
        return Health(False, str(error))
    except Florence2Error as error:
        dead = NOT_HEALTHY.search(str(error))
        return Health(False, f"a process of {dead['model']} is dead or hangs" if dead else f"not working: {error}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        transport.close()
    return Health(True, f"alive: all stages answered in {time.monotonic() - start:.1f} s")


def _probe_until(deadline: float, pool: ThreadPoolExecutor, transport: Transport, model: str) -> None:
    """Send the probe, again while the queue is full. Raise the last error at the deadline, any other error at once."""

    def infer(name: str) -> None:
        image = io.BytesIO()
        # A new color each time, or a cache would hide a dead encoder.
        Image.new("RGB", (32, 32), tuple(os.urandom(3))).save(image, "PNG")
        request = build_request(image.getvalue(), "caption", max_new_tokens=1, num_beams=1)
        transport.infer(name, request.tensors, max(0.001, deadline - time.monotonic()))

    while True:
        try:
            list(pool.map(infer, [f"{model.removesuffix('_ensemble')}_preprocess"] * PROBES))
            return infer(model)
        except QueueFull:
            if time.monotonic() + POLL_SECONDS > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _progresses(probe: Future[None], metrics: Address, model: str, settled: float) -> bool:
    """Watch the counters until the probe ends. Return whether they grow after `settled` while it waits."""
    base: float | None = None
    while not wait([probe], POLL_SECONDS).done:
        if time.monotonic() < settled:
            continue
        work = _work_done(metrics, model)
        if work is not None and base is not None and work > base:
            return True
        base = work if base is None else base
    return False


def _work_done(metrics: Address, model: str) -> float | None:
    """Return the completed requests and decoding steps that the server counts, None if it does not tell."""
    prefix = re.escape(model.removesuffix("_ensemble"))
    counts = re.compile(
        rf'^(?:nv_inference_request_success{{model="{prefix}_ensemble"|florence2_(?:steps|requests)_total'
        rf'{{[^}}]*model="{prefix}_decoder")[^}}]*}} (\S+)$',
        re.MULTILINE,
    )
    with contextlib.suppress(Florence2Error, ValueError):
        status, page = fetch(metrics, "GET", "", METRICS_SECONDS)
        return sum(map(float, counts.findall(page.decode()))) if status == 200 else None
    return None
