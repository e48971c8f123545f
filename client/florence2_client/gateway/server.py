"""Run the gateway with uvicorn, in the foreground or in a thread next to the embedded server."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator

import uvicorn

from florence2.errors import InvalidRequest
from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.gateway.observe import print_line

KEEP_ALIVE_SECONDS = 30
START_SECONDS = 30


class Front:
    """Where the gateway listens. The port is taken at once, so that a mistake shows before anything else starts.

    Raise InvalidRequest if it cannot listen there.
    """

    def __init__(self, host: str, port: int, drain_seconds: int, *, access_log: bool) -> None:
        """`drain_seconds`: for running requests, when the gateway stops."""
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise InvalidRequest(f"the gateway cannot listen on {host}, port {port}: {error.strerror}") from error
        self._host, self._drain_seconds, self._access_log = host, drain_seconds, access_log
        address = self._socket.getsockname()[0]
        self.is_loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback

    @property
    def url(self) -> str:
        """Return the base URL for OpenAI's SDK, on this machine."""
        address, port = self._socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def run(self, options: GatewayOptions) -> int:
        """Serve until SIGINT or SIGTERM, and then until running requests are answered. Return 0."""
        server = self._server(options)
        print(self._announcement(options), flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it is done
            server.run([self._socket])
        return 0

    @contextlib.contextmanager
    def running(self, options: GatewayOptions) -> Iterator[None]:
        """Serve in a thread while the block runs; leaving it waits until running requests are answered."""
        server = self._server(options)
        thread = threading.Thread(target=server.run, args=([self._socket],), name="gateway")
        thread.start()
        print(self._announcement(options), flush=True)
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()

    def _server(self, options: GatewayOptions) -> uvicorn.Server:
        app = make_app(options, print_line if self._access_log else None)
        return uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, lifespan="on", server_header=False,
                timeout_graceful_shutdown=self._drain_seconds, timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )  # fmt: skip

    def _announcement(self, options: GatewayOptions) -> str:
        return f"The gateway is at {self.url} until Ctrl-C; its requests go to {options.url}."
