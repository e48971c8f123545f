"""A wrong protocol, port or certificate is named in one true sentence, with and without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from PIL import Image

from florence2.errors import ConnectionFailed
from florence2_client import AsyncClient, Client, Tls, cli
from florence2_client.transports import parse_url
from florence2_client.transports.errors import connection_failed

IMAGE = Image.new("RGB", (8, 8))


class Pages(http.server.BaseHTTPRequestHandler):
    """nginx's answer to a wrong path, and the pages that Triton's ports have."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = self.server.pages.get(self.path)
        status, content = (404, b"<html><h1>404 Not Found</h1>nginx</html>") if content is None else (200, content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_):
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -out {path}"
    command += f" -keyout {path.with_suffix('.key')} -addext subjectAltName=DNS:localhost"
    subprocess.run(command.split(), check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def ports(certificate):
    with contextlib.ExitStack() as stack:

        def serve(pages: dict[str, bytes], tls: bool = False) -> int:
            server = stack.enter_context(QuietServer(("127.0.0.1", 0), Pages))
            server.pages = pages
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate, certificate.with_suffix(".key"))
                server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return server.server_port

        def serve_grpc(tls: bool = False) -> int:
            server = grpc.server(ThreadPoolExecutor(2))
            keys = [(certificate.with_suffix(".key").read_bytes(), certificate.read_bytes())]
            secure = grpc.ssl_server_credentials(keys)
            port = server.add_secure_port("[::]:0", secure) if tls else server.add_insecure_port("[::]:0")
            server.start()
            stack.callback(server.stop, None)
            return port

        def serve_ssh() -> int:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def greet() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listening.accept()
                        with connection:
                            connection.recv(100)
                            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

            threading.Thread(target=greet, daemon=True).start()
            return listening.getsockname()[1]

        with socket.create_server(("127.0.0.1", 0)) as unused:
            closed = unused.getsockname()[1]
        yield {
            "triton": serve({"/v2/health/live": b""}),
            "metrics": serve({"/metrics": b'nv_inference_count{model="m"} 1\n'}),
            "nginx": serve({}),
            "https": serve({}, tls=True),
            "grpc": serve_grpc(),
            "grpcs": serve_grpc(tls=True),
            "ssh": serve_ssh(),
            "closed": closed,
        }


CASES = [
    ("grpc://127.0.0.1:{triton}", "that port speaks HTTP, another protocol than gRPC; use http://127.0.0.1:{triton}"),
    ("grpc://127.0.0.1:{nginx}", "that port speaks HTTP, another protocol than gRPC; Triton's ports are usually 8001"),
    ("http://127.0.0.1:{grpc}", "that port speaks gRPC, another protocol than HTTP; use grpc://127.0.0.1:{grpc}"),
    ("grpcs://127.0.0.1:{grpc}", "that port does not use TLS; use grpc://127.0.0.1:{grpc}"),
    ("https://127.0.0.1:{triton}", "that port does not use TLS; use http://127.0.0.1:{triton}"),
    ("grpcs://127.0.0.1:{triton}", "that port speaks HTTP, another protocol than gRPC; use http://127.0.0.1:{triton}"),
    ("https://127.0.0.1:{grpc}", "that port speaks gRPC, another protocol than HTTP; use grpc://127.0.0.1:{grpc}"),
    ("grpc://127.0.0.1:{grpcs}", "that port uses TLS, and grpc:// does not; use grpcs://127.0.0.1:{grpcs}"),
    ("http://127.0.0.1:{https}", "that port uses TLS, and http:// does not; use https://127.0.0.1:{https}"),
    ("grpc://127.0.0.1:{https}", "that port uses TLS, and grpc:// does not; use https://127.0.0.1:{https}"),
    ("http://127.0.0.1:{grpcs}", "that port uses TLS, and http:// does not; use https://127.0.0.1:{grpcs} or grpcs://"),
    ("grpcs://localhost:{https} trusted", "that port speaks HTTP, another protocol than gRPC; use https://"),
    ("https://localhost:{grpcs} trusted", "that port speaks gRPC, another protocol than HTTP; use grpcs://"),
    ("https://localhost:{https}", "its certificate is not trusted: self-signed certificate; name its authority"),
    ("grpcs://localhost:{grpcs}", "its certificate is not trusted: self-signed certificate; name its authority"),
    ("https://127.0.0.1:{https} trusted", "its certificate is not trusted: ip address mismatch"),
    ("grpcs://127.0.0.1:{grpcs} trusted", "its certificate is not trusted: ip address mismatch"),
    ("http://127.0.0.1:{metrics}", "that is the port of Triton's metrics, which takes no requests"),
    ("grpc://127.0.0.1:{metrics}", "that is the port of Triton's metrics, which takes no requests"),
    ("http://127.0.0.1:{nginx}", "was answered with HTTP status 404: an HTTP server answers there, but not as Triton"),
    ("http://127.0.0.1:{triton}/api", "Triton answers there, but not below /api; use http://127.0.0.1:{triton}"),
    ("grpc://127.0.0.1:{grpc}", "a gRPC server that is not Triton answers at grpc://127.0.0.1:{grpc}"),
    ("grpc://127.0.0.1:{ssh}", "that port speaks neither gRPC nor HTTP, but another protocol"),
    ("http://127.0.0.1:{ssh}", "that port speaks neither gRPC nor HTTP, but another protocol"),
    ("grpc://127.0.0.1:{closed}", "(connection refused); is the server running?"),
    ("http://127.0.0.1:{closed}", "(connection refused); is the server running?"),
    ("grpc://no-such-host.invalid", "(unknown host); is the server running?"),
    ("http://no-such-host.invalid", "(unknown host); is the server running?"),
]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("url", "sentence"), CASES, ids=[url for url, _ in CASES])
def test_what_listens_instead_is_named(ports, certificate, url, sentence, mode):
    address, _, trusted = url.format(**ports).partition(" ")
    arguments = {"tls": Tls(ca=certificate) if trusted else None, "retry_for": 0}

    async def send() -> None:
        async with AsyncClient(address, **arguments) as client:
            await client.run(IMAGE, "od", timeout=20)

    with pytest.raises(ConnectionFailed) as caught:
        if mode == "async":
            asyncio.run(send())
        else:
            with Client(address, **arguments) as client:
                client.run(IMAGE, "od", timeout=20)
    assert sentence.format(**ports) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:{triton}", "http://127.0.0.1:{grpc}", "http://127.0.0.1:{metrics}"])
def test_the_command_line_says_it_too(ports, url, tmp_path, capsys):
    IMAGE.save(tmp_path / "image.png")
    sentence = next(sentence for case, sentence in CASES if case == url).format(**ports)
    assert cli.main(["run", str(tmp_path / "image.png"), "--task", "od", "--url", url.format(**ports)]) == 3
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_refusal_of_one_address_does_not_hide_the_listener(ports):
    """localhost has two addresses; gRPC may name the one where nothing listens."""
    address = parse_url(f"grpc://localhost:{ports['https']}")
    error = connection_failed(address, "failed to connect to all addresses; last error: Connection refused")
    assert "that port uses TLS, and grpc:// does not" in str(error)
