"""Clients that misbehave on a connection until they are cancelled."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from florence2_client.transports import open_async_transport, parse_url
from tests.stress.images import ENSEMBLE, good
from tests.stress.images import request as request_tensors

PATH = f"/v2/models/{ENSEMBLE}"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HALF_A_FRAME = b"\0\4\0\1\4\0\0\0\1" + b"\x83" * 20  # announces 1024 bytes of headers
RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds


async def connect(url: str, receive_bytes: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    assert parts.hostname and parts.port
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    return await asyncio.open_connection(sock=sock)


def head(length: int, path: str = f"{PATH}/generate", method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def body() -> bytes:
    image = good(random.Random(), "JPEG")
    return json.dumps({"IMAGE": base64.b64encode(image).decode(), "TASK": "<CAPTION>", "MAX_NEW_TOKENS": 8}).encode()


async def slow_header(http_url: str, _grpc_url: str) -> None:
    """Send a character of the header every half second."""
    _, writer = await connect(http_url)
    for character in head(10) * 1000:
        writer.write(bytes([character]))
        await writer.drain()
        await asyncio.sleep(0.5)


async def slow_body(http_url: str, _grpc_url: str) -> None:
    """Announce a megabyte and send a byte every half second."""
    _, writer = await connect(http_url)
    writer.write(head(10**6))
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.5)


async def half_a_frame(_http_url: str, grpc_url: str) -> None:
    """Stop in the middle of the first gRPC headers."""
    _, writer = await connect(grpc_url)
    writer.write(PREFACE + SETTINGS + HALF_A_FRAME)
    await writer.drain()
    await asyncio.sleep(3600)


async def vanishing(http_url: str, _grpc_url: str) -> None:
    """Send a request and reset the connection before the response, every two seconds."""
    while True:
        _, writer = await connect(http_url)
        content = body()
        writer.write(head(len(content)) + content)
        await writer.drain()
        await asyncio.sleep(random.uniform(0, 0.5))
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.close()
        await asyncio.sleep(2)


async def cancelling(_http_url: str, grpc_url: str) -> None:
    """Send a request over gRPC and cancel it, every two seconds."""
    transport = open_async_transport(parse_url(grpc_url))
    while True:
        inputs = request_tensors(good(random.Random(), "JPEG"), "<CAPTION>")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(transport.infer(ENSEMBLE, inputs, None), random.uniform(0.01, 0.5))
        await asyncio.sleep(2)


async def never_reading(http_url: str, _grpc_url: str) -> None:
    """Send ten requests on one connection for more than its buffer holds, and read nothing."""
    _, writer = await connect(http_url, receive_bytes=2048)
    writer.write(head(0, f"{PATH}/config", "GET") * 10)
    await asyncio.sleep(3600)


Misbehave = Callable[[str, str], Awaitable[None]]
KINDS: dict[str, Misbehave] = {
    "slow header": slow_header,
    "slow body": slow_body,
    "half a frame": half_a_frame,
    "vanishing": vanishing,
    "cancelling": cancelling,
    "never reading": never_reading,
}
