"""The seam between client and network: what a transport does, and which one a URL means."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import numpy as np
from tritonclient.utils import np_to_triton_dtype

from florence2.errors import InvalidRequest
from florence2_client.request import Tensors

Outputs: TypeAlias = "Mapping[str, np.ndarray[Any, Any] | None]"

DEFAULT_URL = "grpc://127.0.0.1:8001"
DEFAULT_PORTS = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
HEADER = re.compile(r"[A-Za-z0-9_.-]+: ?[\x20-\x7e]*")


class Transport(Protocol):
    """Sends one request and waits for its answer. Safe to call from many threads."""

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """The model's outputs by name. Raises the errors of `florence2.errors`; `timeout` is in seconds."""

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> Generator[Outputs, None, None]:
        """As `infer`, of a model with many responses. Closing the generator gives the request up."""

    def close(self) -> None:
        """Closes the connections."""


class AsyncTransport(Protocol):
    """The same for one event loop. Cancelling `infer` gives the request up."""

    async def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """As `Transport.infer`."""

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        """As `Transport.stream`."""

    async def close(self) -> None:
        """Closes the connections."""


@dataclass(frozen=True)
class Tls:
    """Files in PEM for `grpcs://` and `https://`. Without `ca` the usual authorities are trusted.

    >>> secure = Tls(ca="our-authority.pem")
    """

    ca: str | Path | None = None  # authorities to trust in place of the usual ones
    certificate: str | Path | None = None  # the client's own, where the server asks for one
    key: str | Path | None = None


@dataclass(frozen=True)
class Address:
    """Where a server listens, and how to speak to it."""

    scheme: str  # grpc, http, grpcs or https
    host: str  # in brackets if it is an IPv6 address
    port: int
    path: str  # behind a proxy Triton's HTTP routes may hang below one; empty for gRPC
    headers: Mapping[str, str] = field(default_factory=dict)  # sent with every request, names in lower case
    tls: Tls = Tls()
    others: tuple[str, ...] = ()  # further servers of the same models, each `IPv4:port`; for gRPC alone

    @property
    def secure(self) -> bool:
        return self.scheme.endswith("s")

    @property
    def target(self) -> str:
        """As tritonclient wants it, without the scheme."""
        return f"ipv4:{self._servers}" if self.others else self._servers

    @property
    def _servers(self) -> str:
        return ",".join((f"{self.host}:{self.port}{self.path}", *self.others))

    def __str__(self) -> str:
        return f"{self.scheme}://{self._servers}"


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Raises InvalidRequest if a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"the TLS files cannot be used: {error}") from error
    return context


def parse_url(url: str, headers: Mapping[str, str] | None = None, tls: Tls | None = None) -> Address:
    """`scheme://host[:port]`, or `host[:port]` for gRPC. Raises InvalidRequest on anything else.

    gRPC also takes several servers, by their addresses: `grpc://10.0.0.1:8001,10.0.0.2:8001`.
    """
    url, *others = url.split(",")
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise InvalidRequest(f"{url!r} is not a server's URL; it looks like {DEFAULT_URL}") from error
    path = parts.path.rstrip("/")
    if not host or parts.query or parts.username or (path and parts.scheme.startswith("grpc")):
        raise InvalidRequest(f"{url!r} is not a server's URL; it looks like {DEFAULT_URL}")
    if others and (parts.scheme != "grpc" or not all(map(_is_ipv4, (f"{host}:{port}", *others)))):
        raise InvalidRequest(
            f"several servers are named as grpc://10.0.0.1:8001,10.0.0.2:8001, not {url!r} and {', '.join(others)!r}; "
            "a host name may stand for several by itself"
        )
    bracketed = f"[{host}]" if ":" in host else host
    address = Address(parts.scheme, bracketed, port, path, _checked(headers), tls or Tls(), tuple(others))
    if address.secure:
        tls_context(address.tls)  # trouble with its files is told now, and once
    elif tls:
        raise InvalidRequest(f"TLS is asked for, but {address} does without it; use {address.scheme}s://")
    return address


def _is_ipv4(server: str) -> bool:
    """gRPC takes lists of these alone."""
    host, _, port = server.rpartition(":")
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return port.isdecimal() and 0 < int(port) < 2**16


def _checked(headers: Mapping[str, str] | None) -> dict[str, str]:
    for name, value in (headers or {}).items():
        if not HEADER.fullmatch(f"{name}: {value}"):
            raise InvalidRequest(
                f"{name!r} with {value!r} is not a header: letters, digits and dashes, and plain ASCII"
            )
    return {name.lower(): value for name, value in (headers or {}).items()}


def open_transport(address: Address) -> Transport:
    """The transport of an address; it connects at its first request. Only the libraries it needs are imported."""
    if address.scheme.startswith("grpc"):
        from florence2_client.transports.grpc import GrpcTransport

        return GrpcTransport(address)
    from florence2_client.transports.http import HttpTransport

    return HttpTransport(address)


def open_async_transport(address: Address) -> AsyncTransport:
    """The same for asyncio; to be called, used and closed in one event loop."""
    if address.scheme.startswith("grpc"):
        from florence2_client.transports.grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address)
    from florence2_client.transports.http import AsyncHttpTransport

    return AsyncHttpTransport(address)


def triton_inputs(input_class: Any, tensors: Tensors) -> list[Any]:
    """The tensors as one protocol's `InferInput`s."""
    return [
        input_class(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype)).set_data_from_numpy(tensor)
        for name, tensor in tensors.items()
    ]


def triton_timeout(seconds: float | None) -> int | None:
    """A time limit in Triton's unit, microseconds; the server gives up on the request when it has passed."""
    return None if seconds is None else max(1, int(seconds * 1_000_000))
