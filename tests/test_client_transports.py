"""The real transports against small servers of the test's own that answer as Triton does when things go wrong."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from florence2.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Unavailable,
)
from florence2_client.transport import open_transport

CODES = {  # of gRPC and of Triton's HTTP
    "INVALID_ARGUMENT": (grpc.StatusCode.INVALID_ARGUMENT, 400),
    "UNAVAILABLE": (grpc.StatusCode.UNAVAILABLE, 503),
    "INTERNAL": (grpc.StatusCode.INTERNAL, 500),
}

TENSORS = {"TASK": np.array([b"<OD>"], dtype=object)}


class Script:
    """What the test's server does with a request, and what it saw. The model's name is the script."""

    def __init__(self):
        self.timeouts = []
        self.connections = set()

    def play(self, model, timeout):
        """The status name to fail with, or None to answer."""
        self.timeouts.append(timeout)
        if model == "slow":
            time.sleep(0.6)
        return model if model in CODES else None


class GrpcService(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, script):
        self.script = script

    def ModelInfer(self, request, context):
        self.script.connections.add(context.peer())
        status = self.script.play(request.model_name, request.parameters["timeout"].int64_param)
        if status:
            context.abort(CODES[status][0], "in ensemble 'e', the reason")
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="NUM_TOKENS", datatype="INT32", shape=[1])
        answer.raw_output_contents.append((7).to_bytes(4, "little"))
        return answer


def http_handler(script):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            script.connections.add(self.client_address)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header = json.loads(body[: int(self.headers["Inference-Header-Content-Length"])])
            model = self.path.split("/")[3]
            status = script.play(model, header["parameters"].get("timeout", 0))
            output = {"name": "NUM_TOKENS", "datatype": "INT32", "shape": [1], "data": [7]}
            answer = {"error": "in ensemble 'e', the reason"} if status else {"outputs": [output]}
            if model == "foreign":
                self.reply(502, b"<html>")
            else:
                self.reply(CODES[status][1] if status else 200, json.dumps(answer).encode())

        def reply(self, code, body):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return Handler


@pytest.fixture(params=["grpc", "http"])
def served(request):
    """A transport to a scripted server, the script, and the server's URL."""
    script = Script()
    if request.param == "grpc":
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcService(script), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        stop = lambda: server.stop(None)  # noqa: E731
    else:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http_handler(script))
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stop = server.shutdown
    url = f"{request.param}://127.0.0.1:{port}"
    transport = open_transport(url)
    yield transport, script, url
    transport.close()
    stop()


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_answer_comes_by_name(served):
    """Output tensors arrive under their names."""
    transport, *_ = served
    assert transport.infer("fine", TENSORS, None)["NUM_TOKENS"].tolist() == [7]


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
    """The caller waits no longer than asked, the server learns the limit in microseconds, and the next call works."""
    transport, script, _ = served
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"0\.2 seconds"):
        transport.infer("slow", TENSORS, 0.2)
    assert time.monotonic() - start < 0.5
    assert script.timeouts == [200_000]
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
def test_nobody_listening_is_a_failed_connection(scheme, unused_port):
    """The message holds the address and the way to start a server."""
    url = f"{scheme}://127.0.0.1:{unused_port}"
    with pytest.raises(ConnectionFailed, match=f"{url} .connection refused.; .*florence2 serve"):
        open_transport(url).infer("fine", TENSORS, 5.0)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_unknown_host_is_a_failed_connection(scheme):
    """A misspelt name is told apart from a stopped server."""
    with pytest.raises(ConnectionFailed, match="unknown host"):
        open_transport(f"{scheme}://no-such-host.invalid:8000").infer("fine", TENSORS, 5.0)


def test_wrong_protocol_is_a_failed_connection(served):
    """gRPC spoken to the HTTP port, or the reverse, is recognised."""
    url = served[2]
    other = "http" if url.startswith("grpc") else "grpc"
    with pytest.raises(ConnectionFailed, match="another protocol"):
        open_transport(f"{other}://{url.partition('://')[2]}").infer("fine", TENSORS, 5.0)


@pytest.mark.parametrize("served", ["http"], indirect=True)
def test_http_error_that_is_not_tritons_is_an_internal_error(served):
    """A proxy's HTML page is not shown to the caller."""
    transport, *_ = served
    with pytest.raises(InternalError, match="HTTP status 502"):
        transport.infer("foreign", TENSORS, None)
