"""Transports: how requests reach a server, over gRPC or HTTP."""

from __future__ import annotations

from florence2_client.transports.base import DEFAULT_URL, Address, AsyncTransport, Tls, Transport, parse_url

__all__ = [
    "DEFAULT_URL",
    "Address",
    "AsyncTransport",
    "Tls",
    "Transport",
    "open_async_transport",
    "open_transport",
    "parse_url",
]


def open_transport(address: Address) -> Transport:
    """Return the transport for an address, which connects at its first request. Import only the libraries it needs."""
    if address.scheme.startswith("grpc"):
        from florence2_client.transports.grpc import GrpcTransport

        return GrpcTransport(address)
    from florence2_client.transports.http import HttpTransport

    return HttpTransport(address)


def open_async_transport(address: Address) -> AsyncTransport:
    """Return the same for asyncio. Call it in the event loop that uses and closes the transport."""
    if address.scheme.startswith("grpc"):
        from florence2_client.transports.grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address)
    from florence2_client.transports.http import AsyncHttpTransport

    return AsyncHttpTransport(address)
