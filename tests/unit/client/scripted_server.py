"""Small gRPC and HTTP servers that answer as Triton does when things go wrong."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

CODES = {  # of gRPC and of Triton's HTTP
    "INVALID_ARGUMENT": (grpc.StatusCode.INVALID_ARGUMENT, 400),
    "UNAVAILABLE": (grpc.StatusCode.UNAVAILABLE, 503),
    "INTERNAL": (grpc.StatusCode.INTERNAL, 500),
}


CLOSED = {  # what refuses to show a configuration: Triton and proxies, over gRPC and HTTP
    "restricted": (
        (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-disabled'"),
        (403, b'{"error":"This API is restricted, expecting header \'disabled\'"}'),
    ),
    "no_route": ((grpc.StatusCode.UNIMPLEMENTED, "Method not found!"), (404, b"")),
}


class Script:
    """What a server does with a request, by the name of the model, and what it saw."""

    def __init__(self):
        self.timeouts = []
        self.connections = set()
        self.headers = {}

    def play(self, model, timeout):
        """Return the status to fail with, or None to answer."""
        self.timeouts.append(timeout)
        if model == "slow":
            time.sleep(1.5)
        return model if model in CODES else None


class GrpcService(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, script):
        self.script = script

    def ModelInfer(self, request, context):
        self.script.connections.add(context.peer())
        self.script.headers = dict(context.invocation_metadata())
        status = self.script.play(request.model_name, request.parameters["timeout"].int64_param)
        if status:
            context.abort(CODES[status][0], "in ensemble 'e', the reason")
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="NUM_TOKENS", datatype="INT32", shape=[1])
        answer.raw_output_contents.append((7).to_bytes(4, "little"))
        return answer

    def ModelStreamInfer(self, requests, context):
        """Answer the first request, and end the stream without an error, as a proxy may."""
        answer = self.ModelInfer(next(requests), context)
        yield service_pb2.ModelStreamInferResponse(infer_response=answer)

    def ModelConfig(self, request, context):
        if request.name in CLOSED:
            context.abort(*CLOSED[request.name][0])
        status = self.script.play(request.name, 0)
        if status:
            context.abort(CODES[status][0], "the reason")
        answer = service_pb2.ModelConfigResponse()
        answer.config.name, answer.config.platform = request.name, "ensemble"
        answer.config.parameters["image_size"].string_value = "64x64"
        return answer


def http_handler(script):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            script.connections.add(self.client_address)
            script.headers = {name.lower(): value for name, value in self.headers.items()}
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

        def do_GET(self):
            model = self.path.split("/")[3]
            if model in CLOSED:
                return self.reply(*CLOSED[model][1])
            status = script.play(model, 0)
            config = {"platform": "ensemble", "parameters": {"image_size": {"string_value": "64x64"}}}
            answer = {"error": "the reason"} if status else config
            body = b"<p>" if model == "foreign" else json.dumps(answer).encode()
            self.reply(CODES[status][1] if status else 200, body)

        def reply(self, code, body):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.close_connection = self.path.split("/")[3] == "hang_up"  # which no header announces
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return Handler


@contextlib.contextmanager
def scripted_server(protocol, certificate=None):
    """Yield the script of a running server, and its URL."""
    script = Script()
    if protocol == "grpc":
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcService(script), server)
        if certificate:
            pair = certificate.with_suffix(".key").read_bytes(), certificate.read_bytes()
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
    else:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http_handler(script))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield script, f"{protocol}{'s' * bool(certificate)}://127.0.0.1:{port}"
    if protocol == "grpc":
        server.stop(None)
    else:
        server.shutdown()
        server.server_close()
