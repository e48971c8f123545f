"""Replicas behind one client, as in a rolling update: two real servers, between which gRPC alternates."""

from __future__ import annotations

import contextlib
import io
import random
import re
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client import Client, Question
from florence2_client.cli.health import check_health

CONNECTION_AGE = 1


@pytest.fixture(scope="module")
def second(repository):
    """A second server of the same repository, and a function that stops it before the tests end."""
    with contextlib.ExitStack() as stack:
        replica = EmbeddedServer(
            ServingOptions.on_free_ports(repository, drain_seconds=30, connection_age=CONNECTION_AGE)
        )
        yield stack.enter_context(replica), stack.close


def image() -> bytes:
    """Return a different image each time, so that no cache answers."""
    encoded = io.BytesIO()
    Image.new("RGB", (320, 240), tuple(random.randbytes(3))).save(encoded, "PNG")
    return encoded.getvalue()


def endpoint(server) -> str:
    with urllib.request.urlopen(server.metrics_url) as answer:
        return answer.read().decode()


def answered(server) -> int:
    line = re.search(r'^nv_inference_request_success\{model="florence2_ensemble".*\} (\d+)$', endpoint(server), re.M)
    return int(line[1]) if line else 0


def connections(server) -> set[str]:
    """Return the clients' ends of the connections to its gRPC port."""
    port = f":{server.options.grpc_port:04X}"
    tables = (Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))  # gRPC's sockets are of the second kind
    lines = [line.split() for table in tables for line in table.splitlines()]
    return {remote for _, local, remote, state, *_ in lines if local.endswith(port) and state == "01"}


def test_scaling_sees_what_waits_before_the_encoder(server):
    """The endpoint has the count under the name that the autoscalers use."""
    assert "florence2_inside_requests{" in endpoint(server)


def test_clients_reconnect_and_no_request_is_cut_off(second):
    """An old connection takes no new requests; those on it are answered, however long they take."""
    replica, _ = second
    seen, longest, concurrency = set(), 0.0, 12
    with Client(replica.grpc_url, retry_for=0) as client:
        while longest <= CONNECTION_AGE or len(seen) < 2:
            concurrency *= 2  # one fits into the batch at a time, so that enough of them take long on any machine
            asked = (Question(image(), "od", key=time.monotonic()) for _ in range(2 * concurrency))
            for reply in client.run_many(asked, concurrency=concurrency, ordered=False, num_beams=16):
                reply.unwrap()
                longest = max(longest, time.monotonic() - reply.question.key)
                seen |= connections(replica)
            assert concurrency < 200


def test_replicas_share_and_one_leaves_without_loss(server, second):
    """Every request of a run is answered while one of two replicas gets SIGTERM in the middle of it."""
    replica, stop = second
    both = f"{server.grpc_url},{replica.grpc_url.removeprefix('grpc://')}"
    # Until its last request is answered, the leaving replica refuses every second attempt: longer than clients retry.
    with Client(both, retry_for=60) as client:
        client.run(image(), "caption")
        client.run(image(), "caption")
        before = answered(server), answered(replica)
        replies, leaving = 0, threading.Thread(target=stop)
        for reply in client.run_many(((image(), "od") for _ in range(80)), concurrency=8, ordered=False):
            reply.unwrap()
            replies += 1
            if replies == 20:
                share = answered(replica) - before[1]
                leaving.start()
        leaving.join()
    assert replies == 80 and share >= 5
    assert answered(server) - before[0] >= 40
    assert not check_health(replica.grpc_url, timeout=5).alive
