"""The interface of the transports, which `grpc` and `http` implement, and the address that a URL names."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import AsyncGenerator, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from florence2.errors import InvalidRequest
from florence2_client.description import Description
from florence2_client.request import Tensors

Outputs: TypeAlias = "Mapping[str, np.ndarray[Any, Any] | None]"

DEFAULT_URL = "grpc://127.0.0.1:8001"
DEFAULT_PORTS = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Headers for the requests of the current task or thread, besides the address's own: those that trace a request.
REQUEST_HEADERS: ContextVar[Mapping[str, str]] = ContextVar("REQUEST_HEADERS", default=NO_HEADERS)
HEADER = re.compile(r"[A-Za-z0-9_.-]+: ?[\x20-\x7e]*")
OWN_HEADERS = frozenset({"content-length", "transfer-encoding"})  # which say where a request ends


class Transport(Protocol):
    """Send requests and wait for the responses. Thread-safe."""

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """Return the model's outputs by name, within `timeout` seconds. Raise the errors of `florence2.errors`."""

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> Generator[Outputs, None, None]:
        """Yield the outputs of each response of a model that streams. Closing the generator cancels the request."""

    def describe(self, model: str, timeout: float) -> Description:
        """Return what `florence2 export` recorded about a model; empty if that made another one."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """The same for one event loop. Cancelling `infer` cancels the request."""

    async def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """Do what `Transport.infer` does."""

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        """Do what `Transport.stream` does."""

    async def describe(self, model: str, timeout: float) -> Description:
        """Do what `Transport.describe` does."""

    async def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True)
class Tls:
    """PEM files for `grpcs://` and `https://`. Without `ca`, the system's certificate authorities are trusted.

    >>> secure = Tls(ca="our-authority.pem")
    """

    ca: str | Path | None = None  # authorities to trust instead
    certificate: str | Path | None = None  # the client's own, if the server requires one
    key: str | Path | None = None


@dataclass(frozen=True)
class Address:
    """Where a server listens, and how to connect to it."""

    scheme: str  # grpc, http, grpcs or https
    host: str  # in brackets if it is an IPv6 address
    port: int
    path: str  # the prefix of Triton's HTTP routes, such as a proxy may add; empty for gRPC
    headers: Mapping[str, str] = field(default_factory=dict)  # sent with every request, names in lower case
    tls: Tls = Tls()
    others: tuple[str, ...] = ()  # further servers of the same models, each `IPv4:port`; gRPC only

    @property
    def secure(self) -> bool:
        """Return whether the connection uses TLS."""
        return self.scheme.endswith("s")

    @property
    def request_headers(self) -> dict[str, str]:
        """Return the headers of a request that is sent now."""
        return {**self.headers, **REQUEST_HEADERS.get()}

    @property
    def target(self) -> str:
        """Return the address in tritonclient's form, without the scheme."""
        return f"ipv4:{self._servers}" if self.others else self._servers

    @property
    def _servers(self) -> str:
        return ",".join((f"{self.host}:{self.port}{self.path}", *self.others))

    def __str__(self) -> str:
        return f"{self.scheme}://{self._servers}"


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return the context for the files. Raise InvalidRequest if one cannot be used."""
    for file in tls.ca, tls.certificate, tls.key:
        if file and not Path(file).is_file():
            raise InvalidRequest(f"the TLS files cannot be used: there is no file {file}")
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)).replace("_", " ")
        raise InvalidRequest(f"the TLS files cannot be used: {reason.lower()}") from error
    return context


def parse_url(url: str, headers: Mapping[str, str] | None = None, tls: Tls | None = None) -> Address:
    """Parse `scheme://host[:port]`, or `host[:port]` for gRPC. Raise InvalidRequest on anything else.

    gRPC also takes several servers by address: `grpc://10.0.0.1:8001,10.0.0.2:8001`.
    """
    url, *others = map(str.strip, url.split(","))
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        default = DEFAULT_PORTS[parts.scheme]
        host, port = parts.hostname or "", default if parts.port is None else parts.port
        host.encode("idna")  # or looking it up would fail, with an error that is no OSError
    except (ValueError, KeyError) as error:
        raise InvalidRequest(f"{url!r} is not the URL of a server; use a form such as {DEFAULT_URL}") from error
    path = parts.path.rstrip("/")
    extras = parts.query or parts.fragment or "@" in parts.netloc or re.search(r"\s", url)
    if not host or not port or extras or (path and parts.scheme.startswith("grpc")):
        raise InvalidRequest(f"{url!r} is not the URL of a server; use a form such as {DEFAULT_URL}")
    if others and (parts.scheme != "grpc" or not all(map(_is_ipv4, (f"{host}:{port}", *others)))):
        raise InvalidRequest(
            "several servers are given by IPv4 address, as in grpc://10.0.0.1:8001,10.0.0.2:8001, not "
            f"{','.join((url, *others))!r}; a single host name may also resolve to several servers"
        )
    for name, value in (headers or {}).items():
        if name.lower() in OWN_HEADERS:
            raise InvalidRequest(f"the header {name} is set for each request; leave it out")
        if not HEADER.fullmatch(f"{name}: {value}"):
            raise InvalidRequest(
                f"{name!r} with value {value!r} is not a header: only letters, digits and dashes, and an ASCII value"
            )
    sent = {name.lower(): value for name, value in (headers or {}).items()}
    bracketed = f"[{host}]" if ":" in host else host
    address = Address(parts.scheme, bracketed, port, path, sent, tls or Tls(), tuple(others))
    if address.secure:
        tls_context(address.tls)  # so that unusable files are reported now
    elif tls:
        raise InvalidRequest(f"TLS files were given, but {address} does not use TLS; use {address.scheme}s://")
    return address


def _is_ipv4(server: str) -> bool:
    """Return whether `server` is `IPv4:port`, the only form that gRPC accepts in a list."""
    host, _, port = server.rpartition(":")
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return port.isdecimal() and 0 < int(port) < 2**16


def triton_timeout(seconds: float | None) -> int | None:
    """Return a time limit in microseconds, Triton's unit. The server gives up on the request when it has passed."""
    return None if seconds is None else max(1, int(seconds * 1_000_000))
