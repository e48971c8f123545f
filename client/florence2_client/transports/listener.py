"""Find out what listens at an address where a connection failed, and say in one sentence how to reach the server."""

from __future__ import annotations

import contextlib
import enum
import socket
import ssl

from florence2_client.transports.base import Address, tls_context

SECONDS = 2.0  # for each connection
MOST_BYTES = 1 << 16
PORTS = "Triton's ports are usually 8001 for gRPC and 8000 for HTTP"
NEEDS_TLS = (b"to HTTPS port", b"to an HTTPS server", b"to a HTTPS server")  # what HTTPS servers say to plain HTTP


class Listener(enum.Enum):
    """What listens at a port."""

    TRITON_HTTP = "Triton over HTTP"
    METRICS = "Triton's metrics"
    HTTP = "another HTTP server"
    GRPC = "gRPC"
    TLS = "TLS"
    OTHER = "another protocol"


def listener_at(host: str, port: int) -> Listener | None:
    """Return what listens, None if nothing does or it says nothing. Takes three connections at most."""
    said = _said(host, port, "/v2/health/live")
    if said is None:
        return None
    if said.startswith(b"HTTP/1."):
        if any(words in said for words in NEEDS_TLS):
            return Listener.TLS
        if b"nv_inference" in (_said(host, port, "/metrics") or b""):
            return Listener.METRICS  # which may answer other paths, too
        return Listener.TRITON_HTTP if said[9:12] == b"200" else Listener.HTTP
    if len(said) > 8 and said[3] == 4 and said[5:9] == bytes(4):  # HTTP/2's SETTINGS, which a server sends first
        return Listener.GRPC
    if said[:2] == b"\x15\x03" or _handshake(host, port, None) is not None:
        return Listener.TLS
    return Listener.OTHER if said else None


def wrong_listener(address: Address) -> str | None:
    """Return a sentence about what listens at the address instead of the expected server, None if that is unknown."""
    host, place = address.host.strip("[]"), f"{address.host}:{address.port}"
    protocol = "gRPC" if address.scheme.startswith("grpc") else "HTTP"
    match found := listener_at(host, address.port):
        case None:
            return None
        case Listener.TLS:
            return _wrong_tls(address, host, protocol, place)
        case Listener.METRICS:
            return f"that is the port of Triton's metrics, which takes no requests; {PORTS}"
        case Listener.HTTP:
            if protocol == "gRPC":
                return f"that port speaks HTTP, another protocol than gRPC; {PORTS}"
            return f"an HTTP server answers there, but not as Triton; {PORTS}"
        case Listener.OTHER:
            return f"that port speaks neither gRPC nor HTTP, but another protocol; {PORTS}"
    spoken = "gRPC" if found is Listener.GRPC else "HTTP"
    if spoken != protocol:
        return f"that port speaks {spoken}, another protocol than {protocol}; use {spoken.lower()}://{place}"
    if address.secure:
        return f"that port does not use TLS; use {protocol.lower()}://{place}"
    return f"Triton answers there, but not below {address.path}; use http://{place}" if address.path else None


def _wrong_tls(address: Address, host: str, protocol: str, place: str) -> str | None:
    """Return what is wrong with the address of a port that uses TLS."""
    chosen = _handshake(host, address.port, None)
    spoken = "grpcs" if protocol == "gRPC" and chosen == "h2" else "https"
    if not address.secure:
        other = f" or grpcs://{place}" if protocol == "HTTP" and chosen == "h2" else ""
        return f"that port uses TLS, and {address.scheme}:// does not; use {spoken}://{place}{other}"
    try:
        _handshake(host, address.port, tls_context(address.tls))
    except ssl.SSLCertVerificationError as error:
        problem = str(error.verify_message).rstrip(".").lower()
        return f"its certificate is not trusted: {problem}; name its authority with Tls(ca=...) or --ca"
    if protocol == "gRPC" and chosen != "h2":
        return f"that port speaks HTTP, another protocol than gRPC; use https://{place}"
    if protocol == "HTTP" and chosen == "h2":
        return f"that port speaks gRPC, another protocol than HTTP; use grpcs://{place}"
    return None


def _said(host: str, port: int, path: str) -> bytes | None:
    """Return what the listener answers to a plain HTTP request, None if nothing listens or it keeps silent."""
    said = b""
    try:
        with (
            socket.create_connection((host, port), SECONDS) as connection,
            contextlib.suppress(ConnectionError),  # after a reset, what came before it counts
        ):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            while len(said) < MOST_BYTES and (piece := connection.recv(MOST_BYTES)):
                said += piece
    except TimeoutError:
        return said or None
    except OSError:
        return None
    return said


def _handshake(host: str, port: int, context: ssl.SSLContext | None) -> str | None:
    """Return the protocol that a TLS server chooses, or "", None if there is no TLS.

    Without a context any certificate will do. With one, raise SSLCertVerificationError if it is not trusted.
    """
    if context is None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection((host, port), SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=host) as secured,
        ):
            return secured.selected_alpn_protocol() or ""
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLError as error:
        return "" if "alert" in str(error).lower() else None  # such as for the lack of a client's own certificate
    except OSError:
        return None
