"""Transports over HTTP: Triton's binary tensors for single responses, server-sent events for streams.

There is one implementation, on aiohttp. The transport for threads runs it on an event loop in a thread of its own,
because only there can a deadline bound the whole call, and closing end requests in progress.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import struct
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import numpy as np
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from florence2.errors import Cancelled, ConnectionFailed, Florence2Error, InternalError, InvalidOption
from florence2_client.description import Description, description_of
from florence2_client.request import Tensors
from florence2_client.transports.base import REQUEST_HEADERS, Address, Outputs, tls_context, triton_timeout
from florence2_client.transports.errors import (
    HTTP_STATUS,
    connection_failed,
    deadline_exceeded,
    not_shown,
    server_error,
)
from florence2_client.transports.listener import wrong_listener

CONNECT_SECONDS = 20.0  # as gRPC
JSON_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
EVENT = b"data:"
NOT_A_ROUTE = (404, 405, 501)  # statuses of servers that know no such path or method
NO_REASONS = ("", "Not Found", "Method Not Allowed")  # the last two are Triton's words where it has no route
LONGEST_EVENT = 1 << 22  # bytes of an answer so far
NOT_TRITONS = "the server's response is not one of Triton's"

T = TypeVar("T")


class AsyncHttpTransport:
    """A pool of kept connections. Cancelling `infer` closes its connection."""

    def __init__(self, address: Address) -> None:
        """Remember the address; nothing connects yet."""
        self._address = address
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """Send the tensors as binary data; Triton learns the time limit."""
        body, json_length = encode_request(tensors, timeout)
        path, headers = f"models/{quote(model)}/infer", {JSON_LENGTH: str(json_length)}
        async with self._sent(path, body, headers, timeout) as response:
            content = await response.read()
            if response.status != 200:
                raise await asyncio.to_thread(refusal, self._address, response.status, content)
            return decode_response(content, response.headers.get(JSON_LENGTH))

    async def stream(self, model: str, tensors: Tensors, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        """Send the tensors as JSON and read events. Triton takes no time limit here, so only the client keeps it."""
        path = f"models/{quote(model)}/generate_stream"
        async with self._sent(path, generate_body(tensors), {}, timeout) as response:
            if response.content_type != "text/event-stream":
                raise await asyncio.to_thread(refusal, self._address, response.status, await response.read())
            async for line in response.content:
                outputs = event_outputs(line)
                if outputs is not None:
                    yield outputs

    async def describe(self, model: str, timeout: float) -> Description:
        """Return what the export recorded about a model."""
        async with self._sent(f"models/{quote(model)}/config", None, {}, timeout) as response:
            content = await response.read()
            if response.status in NOT_A_ROUTE:
                raise not_shown(self._address)  # a proxy may forward only requests
            if response.status != 200:
                raise await asyncio.to_thread(refusal, self._address, response.status, content)
        try:
            return description_of(json.loads(content))
        except ValueError as error:
            raise InternalError(NOT_TRITONS) from error

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def _sent(
        self, path: str, body: bytes | None, headers: dict[str, str], timeout: float | None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Yield the response, to a GET if there is no body; raise failures between client and server as our errors."""
        if self._closed:
            raise Cancelled("the client was closed")
        if self._session is None:
            self._session = open_session(self._address)
        limit = aiohttp.ClientTimeout(total=timeout, connect=None, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                "GET" if body is None else "POST", f"{self._address}/v2/{path}", data=body,
                headers={**REQUEST_HEADERS.get(), **headers}, timeout=limit,
            ) as response:  # fmt: skip
                yield response
        except asyncio.TimeoutError as error:
            if timeout is None or isinstance(error, aiohttp.ConnectionTimeoutError):
                raise await asyncio.to_thread(connection_failed, self._address, "timed out") from error
            raise deadline_exceeded(timeout) from error
        except (OSError, aiohttp.ClientError) as error:
            if self._closed:
                raise Cancelled("the client was closed") from error
            raise await asyncio.to_thread(connection_failed, self._address, reason(error)) from error


class HttpTransport:
    """The same for threads. Closing it ends requests in progress."""

    def __init__(self, address: Address) -> None:
        """Start the event loop; nothing connects yet."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="florence2-http", daemon=True)
        self._thread.start()
        self._transport = AsyncHttpTransport(address)
        self._calls: set[Future[Any]] = set()

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """Wait for the response."""
        return self._call(self._transport.infer, model, tensors, timeout)

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> Generator[Outputs, None, None]:
        """Wait for each response. Closing the generator closes the connection."""
        responses = self._transport.stream(model, tensors, timeout)
        try:
            while (outputs := self._call(anext, responses, None)) is not None:
                yield outputs
        finally:
            with contextlib.suppress(Cancelled):
                self._call(responses.aclose)

    def describe(self, model: str, timeout: float) -> Description:
        """Return what the export recorded about a model."""
        return self._call(self._transport.describe, model, timeout)

    def close(self) -> None:
        """Cancel requests in progress, close the connections and stop the event loop."""
        if self._loop.is_closed():
            return
        for call in list(self._calls):
            call.cancel()
        with contextlib.suppress(Cancelled):
            self._call(self._transport.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        async def call() -> T:
            return await function(*arguments)

        coroutine = call()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError as error:  # the loop is closed
            coroutine.close()
            raise Cancelled("the client was closed") from error
        self._calls.add(future)
        try:
            return future.result()
        except CancelledError as error:
            raise Cancelled("the client was closed") from error
        finally:
            future.cancel()  # after KeyboardInterrupt the request is still running
            self._calls.discard(future)


def open_session(address: Address) -> aiohttp.ClientSession:
    """Return a session without limits but the time to connect. It ignores the environment, and so its proxies."""
    tls: ssl.SSLContext | bool = tls_context(address.tls) if address.secure else True
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls),
        headers={"Accept-Encoding": "identity", **address.headers},
        read_bufsize=LONGEST_EVENT,
    )


def fetch(address: Address, method: str, path: str, seconds: float) -> tuple[int, bytes]:
    """Send a request to one of Triton's other routes; return its status and body. Raise ConnectionFailed."""

    async def send() -> tuple[int, bytes]:
        limit = aiohttp.ClientTimeout(total=seconds)
        async with (
            open_session(address) as session,
            session.request(method, f"{address}{path}", timeout=limit) as response,
        ):
            return response.status, await response.read()

    try:
        return asyncio.run(send())
    except asyncio.TimeoutError as error:
        raise connection_failed(address, "timed out") from error
    except (OSError, aiohttp.ClientError) as error:
        raise connection_failed(address, reason(error)) from error


def encode_request(tensors: Tensors, timeout: float | None) -> tuple[bytes, int]:
    """Return the body of an infer request, JSON and then the tensors, and the length of the JSON."""
    blobs, inputs = [], []
    for name, tensor in tensors.items():
        blob = serialize_byte_tensor(tensor).item() if tensor.dtype == np.object_ else tensor.tobytes()
        inputs.append(
            {
                "name": name,
                "shape": tensor.shape,
                "datatype": np_to_triton_dtype(tensor.dtype),
                "parameters": {"binary_data_size": len(blob)},
            }
        )
        blobs.append(blob)
    parameters = {"binary_data_output": True} | ({} if timeout is None else {"timeout": triton_timeout(timeout)})
    header = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    return b"".join([header, *blobs]), len(header)


def decode_response(body: bytes, json_length: str | None) -> Outputs:
    """Return the outputs in an infer response. Raise InternalError if it is not Triton's."""
    try:
        length = int(json_length) if json_length else len(body)
        outputs, place = {}, length
        for output in json.loads(body[:length])["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            dtype = triton_to_np_dtype(output["datatype"])
            if size is None:
                array = np.array(output["data"], dtype)
            elif dtype == np.object_:
                array = deserialize_bytes_tensor(body[place : place + size])
            else:
                array = np.frombuffer(body, dtype, size // np.dtype(dtype).itemsize, place)
            outputs[output["name"]] = array.reshape(output["shape"])
            place += size or 0
        return outputs
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InternalError(NOT_TRITONS) from error


def generate_body(tensors: Tensors) -> bytes:
    """Return the tensors as JSON, the image as base64. Raise InvalidOption on a number that JSON does not have."""
    values = {name: tensor.reshape(-1)[0] for name, tensor in tensors.items()}
    for name, value in values.items():
        if name == "IMAGE":
            values[name] = base64.b64encode(value).decode()
        else:
            values[name] = value.decode("utf-8") if isinstance(value, bytes) else value.item()
    try:
        return json.dumps(values, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidOption("an option is not a finite number") from error


def event_outputs(line: bytes) -> Outputs | None:
    """Return the outputs in a line of server-sent events, None if it has none. Raise the error that it reports."""
    if not line.startswith(EVENT):
        return None
    try:
        event = json.loads(line[len(EVENT) :])
        values = {name: value.encode() if isinstance(value, str) else value for name, value in event.items()}
        arrays = {name: np.array(value, object if isinstance(value, bytes) else None) for name, value in values.items()}
    except (ValueError, AttributeError) as error:
        raise InternalError(NOT_TRITONS) from error
    if "error" in event:
        raise server_error(None, str(event["error"]))
    return arrays


def refusal(address: Address, status: int, content: bytes) -> Florence2Error:
    """Return the error that a response reports in its JSON, or what else answers at the address."""
    try:
        message = str(json.loads(content)["error"])
    except (ValueError, TypeError, KeyError):
        message = ""
    if status in NOT_A_ROUTE and message in NO_REASONS and (found := wrong_listener(address)):
        return ConnectionFailed(f"{address} was answered with HTTP status {status}: {found}")
    if not message:
        return InternalError(f"the server responded with HTTP status {status} and no reason")
    return server_error(HTTP_STATUS.get(status, "INTERNAL"), message)


def reason(error: Exception) -> str:
    """Return what went wrong; asyncio hides the system's words for a failed connection behind its own."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number and "Connect call failed" in str(error) else str(error)
