"""Run an ASGI application with uvicorn, in the foreground or in a thread next to the embedded server."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from florence2.errors import InvalidRequest

KEEP_ALIVE_SECONDS = 30


class Front:
    """Where an application listens. The port is taken at once, so that a mistake shows before anything else starts.

    Raise InvalidRequest if it cannot listen there.
    """

    def __init__(self, host: str, port: int, drain_seconds: int) -> None:
        """`drain_seconds`: for running requests, when it stops."""
        name = host.strip("[]")  # around an IPv6 address
        try:
            family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((name, port), family=family, backlog=2048)
        except UnicodeError as error:  # a part of the name is empty or too long
            raise InvalidRequest(f"cannot listen on {host}: this is no name of a host") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InvalidRequest(
                    f"port {port} is already in use; choose another with --port; 0 picks a free one"
                ) from error
            raise InvalidRequest(f"cannot listen on {host}, port {port}: {error.strerror}") from error
        self._drain_seconds = drain_seconds
        address = self._socket.getsockname()[0]
        self.is_loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback

    @property
    def url(self) -> str:
        """Return the URL on this machine."""
        address, port = self._socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, app: ASGIApp) -> int:
        """Serve until SIGINT or SIGTERM, and then until running requests are answered. Return 0."""
        # uvicorn raises the signal again when it is done; without handlers of ours it would end the process.
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, lambda _number, _frame: None)
        self._server(app).run([self._socket])
        return 0

    @contextlib.contextmanager
    def running(self, app: ASGIApp) -> Iterator[None]:
        """Serve in a thread while the block runs; leaving it waits until running requests are answered."""
        server = self._server(app)
        thread = threading.Thread(target=server.run, args=([self._socket],), name="gateway")
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()

    def _server(self, app: ASGIApp) -> uvicorn.Server:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="on", server_header=False,
            timeout_graceful_shutdown=self._drain_seconds, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )  # fmt: skip
        return uvicorn.Server(config)
