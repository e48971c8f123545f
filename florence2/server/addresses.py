"""Where a server listens. EmbeddedServer checks it before it loads models, so a taken port is reported at once."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
from dataclasses import dataclass

from florence2.errors import ServerError

# The kernel gives outgoing connections ports from 32768 on. A lower one is not taken by accident between our check and
# tritonserver's bind.
FREE_PORTS = range(15000, 32000)


@dataclass(frozen=True)
class Addresses:
    """An IPv4 address and tritonserver's three ports."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def client_host(self) -> str:
        """Return the address for clients on this machine: 0.0.0.0 is only for listening."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback


def choose_addresses(host: str, http_port: int, grpc_port: int, metrics_port: int) -> Addresses:
    """Return the addresses, with a free port in place of each 0. Raise ServerError if one cannot be used."""
    try:
        address = str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        _bind(address, 0)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}: this machine has no such IPv4 address or name; choose another with --host"
        ) from error
    chosen: list[int] = []
    for option, port in (("--http-port", http_port), ("--grpc-port", grpc_port), ("--metrics-port", metrics_port)):
        if port in chosen:
            raise ServerError(f"port {port} is given twice; choose another with {option}")
        if port:
            _require_free(address, port, option)
        chosen.append(port or _free_port(address, chosen))
    return Addresses(address, *chosen)


def _require_free(host: str, port: int, option: str) -> None:
    try:
        _bind(host, port)
    except OverflowError as error:
        raise ServerError(f"port {port} does not exist; {option} takes 1 to 65535, or 0 for any free port") from error
    except PermissionError as error:
        raise ServerError(f"only root may listen on port {port}; choose one from 1024 on with {option}") from error
    except OSError as error:
        raise ServerError(
            f"port {port} is already in use; choose another with {option}, or let all be chosen with "
            "--http-port 0 --grpc-port 0 --metrics-port 0"
        ) from error


def _free_port(host: str, taken: list[int]) -> int:
    for port in random.sample(FREE_PORTS, 100):
        if port not in taken:
            with contextlib.suppress(OSError):
                _bind(host, port)
                return port
    raise ServerError(
        f"found no free port on {host}; choose the ports with --http-port, --grpc-port and --metrics-port"
    )


def _bind(host: str, port: int) -> None:
    """Bind as tritonserver does: it also takes a port whose last connections are still closing."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
