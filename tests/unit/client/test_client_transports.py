"""The real transports, for threads and for asyncio, against servers that follow a script."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from florence2.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    Florence2Error,
    InternalError,
    InvalidRequest,
    Unavailable,
)
from florence2_client import Tls
from florence2_client.transports import open_transport, parse_url
from florence2_client.transports.http import decode_response, event_outputs
from tests.unit.client.from_threads import FromThreads
from tests.unit.client.scripted_server import scripted_server

TENSORS = {"TASK": np.array([b"<OD>"], dtype=object)}


@pytest.fixture(params=["threads", "asyncio"])
def opened(request):
    """Return a function that opens either kind of transport for a URL; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_url(url, **options):
            address = parse_url(url, **options)
            transport = open_transport(address) if request.param == "threads" else FromThreads(address)
            stack.callback(transport.close)
            return transport

        yield open_url


@pytest.fixture(params=["grpc", "http"])
def served(request, opened):
    """A transport to a scripted server, the script, and the server's URL."""
    with scripted_server(request.param) as (script, url):
        yield opened(url), script, url


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_answer_comes_by_name(served):
    """Output tensors arrive under their names."""
    transport, *_ = served
    assert transport.infer("fine", TENSORS, None)["NUM_TOKENS"].tolist() == [7]


def test_what_a_model_is_comes_over_both_protocols(served):
    transport, _, url = served
    assert transport.describe("fine", 10.0) == {"image_size": "64x64"}
    with pytest.raises(InvalidRequest, match=r"^the reason$"):
        transport.describe("INVALID_ARGUMENT", 10.0)
    with pytest.raises(DeadlineExceeded):
        transport.describe("slow", 0.2)
    if url.startswith("http"):
        with pytest.raises(InternalError, match="not one of Triton's"):
            transport.describe("foreign", 10.0)


@pytest.mark.parametrize("model", ["restricted", "no_route"])
def test_a_server_that_hides_a_model_is_not_absent(served, model):
    """A retry would not help, and requests may be answered all the same."""
    transport, *_ = served
    with pytest.raises(Florence2Error) as caught:
        transport.describe(model, 10.0)
    assert not isinstance(caught.value, Unavailable)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"{}", "many"), (b"{}", "9" * 5000), (b"[]", None), (b'{"outputs": ["a"]}', None),
        (b'{"outputs": {"a": 1}}', None),
        (b'{"outputs": [{"name": "A", "datatype": "INT32", "shape": [1]}]}', None),
        (b'{"outputs": [{"name": "A", "datatype": "INT32", "shape": [2], "data": [1]}]}', None),
        (b'{"outputs": [{"name": "A", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 3}}]}abc',
         "102"),
    ],
)  # fmt: skip
def test_a_damaged_response_is_an_internal_error(body, length):
    """Whatever a proxy makes of it."""
    with pytest.raises(InternalError, match="not one of Triton's"):
        decode_response(body, length)


@pytest.mark.parametrize("event", [b"data: [", b"data: []", b'data: {"RESULT": [[1], [1, 2]]}'])
def test_a_damaged_event_is_an_internal_error(event):
    with pytest.raises(InternalError, match="not one of Triton's"):
        event_outputs(event)


@pytest.mark.parametrize(
    ("status", "error"),
    [("INVALID_ARGUMENT", InvalidRequest), ("UNAVAILABLE", Unavailable), ("INTERNAL", InternalError)],
)
def test_status_of_the_server_becomes_our_exception(served, status, error):
    """Both protocols give the same exception with the server's bare sentence."""
    transport, *_ = served
    with pytest.raises(error) as caught:
        transport.infer(status, TENSORS, None)
    assert type(caught.value) is error
    assert str(caught.value) == "the reason"


def test_time_limit_is_kept_and_told_to_the_server(served):
    """The client waits no longer than asked, the server learns the limit in microseconds, and the next call works."""
    transport, script, _ = served
    transport.infer("fine", TENSORS, None)  # to connect may take its time on a busy machine
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"0\.2 seconds"):
        transport.infer("slow", TENSORS, 0.2)
    assert time.monotonic() - start < 1.2
    assert script.timeouts[1:] == [200_000]
    assert transport.infer("fine", TENSORS, 5.0)["NUM_TOKENS"].tolist() == [7]


def test_connection_is_reused(served):
    """Requests of one thread share a connection, also after an error."""
    transport, script, _ = served
    for model in ("fine", "INVALID_ARGUMENT", "fine"):
        with contextlib.suppress(InvalidRequest):
            transport.infer(model, TENSORS, None)
    assert len(script.connections) == 1


def test_many_threads_share_a_transport(served):
    """Requests from several threads at once are all answered."""
    transport, *_ = served
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: transport.infer("fine", TENSORS, 5.0)["NUM_TOKENS"].tolist(), range(20))
        assert list(answers) == [[7]] * 20


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_unused_port_is_a_failed_connection(opened, scheme, unused_port):
    """The message holds the address and the way to start a server."""
    url = f"{scheme}://127.0.0.1:{unused_port}"
    with pytest.raises(ConnectionFailed, match=f"{url} .connection refused.; .*florence2 serve"):
        opened(url).infer("fine", TENSORS, 5.0)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_unknown_host_is_a_failed_connection(opened, scheme):
    """A misspelt name is told apart from a stopped server."""
    with pytest.raises(ConnectionFailed, match="unknown host"):
        opened(f"{scheme}://no-such-host.invalid:8000").infer("fine", TENSORS, 5.0)


def test_wrong_protocol_is_a_failed_connection(served, opened):
    """gRPC spoken to the HTTP port, or the reverse, is recognized."""
    url = served[2]
    other = "http" if url.startswith("grpc") else "grpc"
    with pytest.raises(ConnectionFailed, match="another protocol"):
        opened(f"{other}://{url.partition('://')[2]}").infer("fine", TENSORS, 5.0)


@pytest.mark.parametrize("served", ["http"], indirect=True)
def test_http_error_that_is_not_tritons_is_an_internal_error(served):
    """A proxy's HTML page is not shown to the user."""
    transport, *_ = served
    with pytest.raises(InternalError, match="HTTP status 502"):
        transport.infer("foreign", TENSORS, None)


def test_headers_go_with_every_request(served, opened):
    """Names are in lower case, as gRPC needs them."""
    _, script, url = served
    opened(url, headers={"X-Api-Key": "secret"}).infer("fine", TENSORS, 5.0)
    assert script.headers["x-api-key"] == "secret"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that only its own file vouches for."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -out {path}"
    command += f" -keyout {path.with_suffix('.key')} -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    return path


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls_with_an_authority_of_ones_own(protocol, opened, certificate):
    """With the authority's file the connection is encrypted and trusted; without it, it is refused."""
    with scripted_server(protocol, certificate) as (_, url):
        trusting = opened(url, tls=Tls(ca=certificate))
        assert trusting.infer("fine", TENSORS, 5.0)["NUM_TOKENS"].tolist() == [7]
        with pytest.raises(ConnectionFailed, match="certificate"):
            opened(url).infer("fine", TENSORS, 5.0)


@pytest.mark.parametrize("served", ["http"], indirect=True)
def test_kept_connection_that_the_server_closed_is_replaced(served):
    """After a pause in which the server hung up, the next request is answered all the same."""
    transport, script, _ = served
    transport.infer("hang_up", TENSORS, 5.0)
    time.sleep(0.1)
    assert transport.infer("fine", TENSORS, 5.0)["NUM_TOKENS"].tolist() == [7]
    assert len(script.connections) == 2


def test_several_servers_take_turns_and_one_may_go(opened):
    """Each gets its share. If one stops, its requests fail and later ones go to the other."""
    with scripted_server("grpc") as (script, url), contextlib.ExitStack() as second:
        other, other_url = second.enter_context(scripted_server("grpc"))
        transport = opened(f"{url},{other_url.removeprefix('grpc://')}")
        while not (script.timeouts and other.timeouts):  # the two connections are made one after the other
            transport.infer("fine", TENSORS, 5)
        before = len(script.timeouts), len(other.timeouts)
        for _ in range(10):
            transport.infer("fine", TENSORS, 5)
        assert (len(script.timeouts) - before[0], len(other.timeouts) - before[1]) == (5, 5)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(transport.infer, "slow", TENSORS, 5) for _ in range(2)]
            while len(script.timeouts) + len(other.timeouts) < sum(before) + 12:
                time.sleep(0.01)
            second.close()
        outcomes = [call.exception() for call in asked]
        assert outcomes.count(None) == 1 and any(isinstance(error, Unavailable) for error in outcomes)
        for _ in range(10):
            transport.infer("fine", TENSORS, 5)


def test_a_stream_that_ends_without_an_error_ends(opened):
    """A proxy that stops may end it so: what has come is yielded, and more is not waited for."""
    with scripted_server("grpc") as (_, url):
        answers = [outputs["NUM_TOKENS"].tolist() for outputs in opened(url).stream("fine", TENSORS, None)]
    assert answers == [[7]]
