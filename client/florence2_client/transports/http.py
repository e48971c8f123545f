"""Transports over HTTP: a pool of kept connections each.

tritonclient's own client for threads stands on gevent, whose loops belong to one thread each and stay when it ends; so
the one for threads takes from tritonclient what makes and reads the bytes, and sends them by http.client.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from urllib.parse import quote

import aiohttp
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from florence2.errors import Florence2Error, InternalError
from florence2_client.request import Tensors
from florence2_client.streaming import event_outputs, generate_body
from florence2_client.transports.base import Address, Outputs, tls_context, triton_inputs, triton_timeout
from florence2_client.transports.errors import HTTP_STATUS, connection_failed, deadline_exceeded, triton_error

CONNECT_SECONDS = 20.0  # as gRPC
CHUNK = 1 << 16
LINE = 1 << 22  # bytes that an answer so far may have


class HttpTransport:
    """Safe for many threads: a connection is one request's at a time. Closing it ends requests that are under way."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._tls = tls_context(address.tls) if address.secure else None
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._closed = False

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        inputs = triton_inputs(triton.InferInput, tensors)
        body, json_bytes = triton.InferenceServerClient.generate_request_body(inputs, timeout=triton_timeout(timeout))
        headers = {**self._address.headers, "Inference-Header-Content-Length": str(json_bytes)}
        path = f"{self._address.path}/v2/models/{quote(model)}/infer"
        deadline = None if timeout is None else time.monotonic() + timeout
        with _network_errors(self._address, timeout):
            response, answer = self._post(path, body, headers, deadline)
        if response.status != 200:
            raise _refusal(response.status, answer)
        json_bytes = response.getheader("Inference-Header-Content-Length")
        return _outputs(triton.InferenceServerClient.parse_response_body(answer, header_length=json_bytes))

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> Generator[Outputs, None, None]:
        """On a connection of its own, which ends with it. Triton takes no time limit this way: it is ours alone."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with _network_errors(self._address, timeout):
            yield from self._events(model, generate_body(tensors), deadline)

    def _events(self, model: str, body: bytes, deadline: float | None) -> Generator[Outputs, None, None]:
        connection = self._connect(deadline)
        self._busy.add(connection)
        try:
            _limit(connection, deadline)
            connection.request("POST", _stream_path(self._address, model), body, dict(self._address.headers))
            _limit(connection, deadline)
            response = connection.getresponse()
            if not _is_stream(response.getheader("Content-Type")):
                raise _refusal(response.status, response.read())
            while line := response.readline():
                outputs = event_outputs(line)
                if outputs is not None:
                    yield outputs
                _limit(connection, deadline)
        finally:
            self._busy.discard(connection)
            connection.close()

    def close(self) -> None:
        """Explicitly: a server that is asked to stop waits for connections that are still open."""
        self._closed = True
        for connection in list(self._busy):
            with contextlib.suppress(AttributeError, OSError):  # not connected, or not any more
                connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
        while self._idle:
            self._idle.pop().close()

    def _post(
        self, path: str, body: bytes, headers: dict[str, str], deadline: float | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """A kept connection may have been closed by the server meanwhile; then a new one is used."""
        while self._idle:
            with contextlib.suppress(ConnectionError, http.client.BadStatusLine, IndexError):
                return self._exchange(self._idle.pop(), path, body, headers, deadline)
        return self._exchange(self._connect(deadline), path, body, headers, deadline)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes,
        headers: dict[str, str],
        deadline: float | None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Kept only after a whole answer: half of one must not meet the next request."""
        self._busy.add(connection)
        try:
            _limit(connection, deadline)
            connection.request("POST", path, body, headers)
            _limit(connection, deadline)
            response = connection.getresponse()
            chunks = []
            while chunk := response.read(CHUNK):
                chunks.append(chunk)
                _limit(connection, deadline)
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        self._idle.append(connection)
        return response, b"".join(chunks)

    def _connect(self, deadline: float | None) -> http.client.HTTPConnection:
        if self._closed:
            raise ConnectionAbortedError("the client was closed")
        host, port = self._address.host.strip("[]"), self._address.port
        seconds = CONNECT_SECONDS if deadline is None else min(CONNECT_SECONDS, _left(deadline))
        if self._tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=seconds, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=seconds)
        connection.connect()
        return connection


def _limit(connection: http.client.HTTPConnection, deadline: float | None) -> None:
    """Without a limit an answer may take minutes. A connection that the server ends after this answer has no socket."""
    if connection.sock is not None:
        connection.sock.settimeout(None if deadline is None else _left(deadline))


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


@contextlib.contextmanager
def _network_errors(address: Address, timeout: float | None) -> Iterator[None]:
    """What goes wrong between here and the server, as our errors."""
    try:
        yield
    except TimeoutError as error:
        if timeout is None:  # while connecting
            raise connection_failed(address, error) from error
        raise deadline_exceeded(timeout) from error
    except (OSError, http.client.HTTPException) as error:
        raise connection_failed(address, error) from error


class AsyncHttpTransport:
    """One pool of connections. Cancelling `infer` closes its connection."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._tls = tls_context(address.tls) if address.secure else True
        self._client = triton_aio.InferenceServerClient(
            address.target,
            ssl=address.secure,
            ssl_context=self._tls if address.secure else None,
            conn_limit=0,  # how many requests are in flight is the caller's choice
            conn_timeout=None,  # tritonclient means the whole request by it
        )

    async def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        try:
            call = self._client.infer(
                model,
                triton_inputs(triton.InferInput, tensors),
                timeout=triton_timeout(timeout),
                headers=dict(self._address.headers),  # tritonclient adds to it
            )
            result = await asyncio.wait_for(call, timeout)
        except InferenceServerException as error:
            raise _translated(error) from error
        except asyncio.TimeoutError as error:
            assert timeout is not None
            raise deadline_exceeded(timeout) from error
        except (OSError, aiohttp.ClientError) as error:
            raise connection_failed(self._address, _reason(error)) from error
        return _outputs(result)

    async def stream(self, model: str, tensors: Tensors, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        url = f"{self._address.scheme}://{self._address.host}:{self._address.port}{_stream_path(self._address, model)}"
        limit = aiohttp.ClientTimeout(total=timeout, connect=CONNECT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(headers=dict(self._address.headers), timeout=limit, read_bufsize=LINE) as session,
                session.post(url, data=generate_body(tensors), ssl=self._tls) as response,
            ):
                if not _is_stream(response.headers.get("Content-Type")):
                    raise _refusal(response.status, await response.read())
                async for line in response.content:
                    outputs = event_outputs(line)
                    if outputs is not None:
                        yield outputs
        except asyncio.TimeoutError as error:
            if timeout is None:
                raise connection_failed(self._address, "timed out") from error
            raise deadline_exceeded(timeout) from error
        except (OSError, aiohttp.ClientError) as error:
            raise connection_failed(self._address, _reason(error)) from error

    async def close(self) -> None:
        await self._client.close()


def _stream_path(address: Address, model: str) -> str:
    return f"{address.path}/v2/models/{quote(model)}/generate_stream"


def _is_stream(content_type: str | None) -> bool:
    return (content_type or "").startswith("text/event-stream")


def _reason(error: Exception) -> str:
    """asyncio hides the system's words for a failed connect behind its own."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number and "Connect call failed" in str(error) else str(error)


def _outputs(result: triton.InferResult) -> Outputs:
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def _refusal(status: int, answer: bytes) -> Florence2Error:
    try:
        sentence = str(json.loads(answer)["error"])
    except (ValueError, TypeError, KeyError):
        return InternalError(f"the server answered with HTTP status {status} and no reason")
    return triton_error(HTTP_STATUS.get(str(status), "INTERNAL"), sentence)


def _translated(error: InferenceServerException) -> Florence2Error:
    status = error.status() or ""
    if error.debug_details() is not None:  # tritonclient's sign for a body that is not Triton's
        return InternalError(f"the server answered with HTTP status {status} and no reason")
    return triton_error(HTTP_STATUS.get(status, "INTERNAL"), error.message())
