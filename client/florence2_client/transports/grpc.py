"""Transports over gRPC: one channel each, shared by all threads or tasks.

Requests rotate over all servers that the address names, with one connection to each, and skip those that are absent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from florence2.errors import Cancelled, ConnectionFailed, Florence2Error
from florence2_client.description import Description, description_of
from florence2_client.request import Tensors
from florence2_client.transports.base import Address, Outputs, triton_timeout
from florence2_client.transports.errors import (
    NO_CONNECTION,
    NOT_TRITON,
    RESTRICTED,
    connection_failed,
    deadline_exceeded,
    not_shown,
    server_error,
)
from florence2_client.transports.listener import PORTS

CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),  # gRPC's default of two minutes makes a restarted server seem dead
    # By default gRPC sends everything to the first server of several
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.enable_http_proxy", 0),  # a company's http_proxy would swallow requests to 127.0.0.1
]
STREAM_POLL_SECONDS = 0.5


class GrpcTransport:
    """A channel for threads. Closing it ends requests in progress."""

    def __init__(self, address: Address) -> None:
        """Prepare the channel; nothing connects yet."""
        self._address = address
        self._client = triton.InferenceServerClient(**connection_arguments(address))
        self._streams: set[Any] = set()

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """Wait for the response."""
        try:
            result = self._client.infer(**_call(self._address, model, tensors, timeout))
        except InferenceServerException as error:
            raise translated(self._address, error, timeout) from error
        except ValueError as error:  # what gRPC raises when another thread has closed the channel
            raise Cancelled("the client was closed") from error
        return _outputs(result)

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> Generator[Outputs, None, None]:
        """Use a tritonclient of its own, since one has a single stream at a time. They share the connection."""
        arrivals: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

        def arrive(result: Any, error: Any) -> None:
            arrivals.put((result, error))

        client = triton.InferenceServerClient(**connection_arguments(self._address))
        self._streams.add(client)
        try:
            client.start_stream(arrive, stream_timeout=timeout, headers=self._address.request_headers)
            with contextlib.suppress(InferenceServerException):  # it has already ended; the reason is queued
                client.async_stream_infer(model, _inputs(tensors), timeout=triton_timeout(timeout))
            while True:
                try:
                    arrived = arrivals.get(timeout=STREAM_POLL_SECONDS)
                except queue.Empty:
                    if client._stream._handler.is_alive() or not arrivals.empty():
                        continue
                    return  # it ended without an error, of which tritonclient does not tell
                yield _streamed(self._address, *arrived, timeout)
        finally:
            self._streams.discard(client)
            client.stop_stream(cancel_requests=True)
            client.close()

    def describe(self, model: str, timeout: float) -> Description:
        """Return what the export recorded about a model."""
        headers = self._address.request_headers
        try:
            told = self._client.get_model_config(model, as_json=True, client_timeout=timeout, headers=headers)
        except InferenceServerException as error:
            raise _not_described(self._address, error, timeout) from error
        except ValueError as error:  # as in `infer`
            raise Cancelled("the client was closed") from error
        return description_of(told.get("config"))

    def close(self) -> None:
        """Cancel streams and close the channel."""
        for client in list(self._streams):
            client.stop_stream(cancel_requests=True)
        self._client.close()


class AsyncGrpcTransport:
    """A channel for asyncio. Cancelling `infer` cancels the call."""

    def __init__(self, address: Address) -> None:
        """Prepare the channel; nothing connects yet."""
        self._address = address
        self._client = triton_aio.InferenceServerClient(**connection_arguments(address))
        self._closed = False

    async def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        """Await the response."""
        try:
            with self._ended_by_closing():
                result = await self._client.infer(**_call(self._address, model, tensors, timeout))
        except InferenceServerException as error:
            raise await asyncio.to_thread(translated, self._address, error, timeout) from error
        return _outputs(result)

    async def stream(self, model: str, tensors: Tensors, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        """Yield the responses."""

        async def requests() -> AsyncGenerator[dict[str, Any], None]:
            yield {"model_name": model, "inputs": _inputs(tensors), "timeout": triton_timeout(timeout)}

        headers = self._address.request_headers
        started = time.monotonic()
        arrivals = self._client.stream_infer(requests(), stream_timeout=timeout, headers=headers)
        try:
            with self._ended_by_closing():
                async for result, error in arrivals:
                    yield _streamed(self._address, result, error, timeout)
        except grpc.RpcError as error:
            # A limit that passes before gRPC has sent the request comes as an internal error of its own.
            if timeout is not None and time.monotonic() - started >= timeout:
                raise deadline_exceeded(timeout) from error
            named = InferenceServerException(error.details(), str(error.code()))  # as tritonclient does elsewhere
            raise await asyncio.to_thread(translated, self._address, named, timeout) from error
        finally:
            arrivals.cancel()

    async def describe(self, model: str, timeout: float) -> Description:
        """Return what the export recorded about a model."""
        headers = self._address.request_headers
        try:
            with self._ended_by_closing():
                told = await self._client.get_model_config(model, as_json=True, client_timeout=timeout, headers=headers)
        except InferenceServerException as error:
            raise await asyncio.to_thread(_not_described, self._address, error, timeout) from error
        return description_of(told.get("config"))

    async def close(self) -> None:
        """Close the channel. Requests in progress end with Cancelled."""
        self._closed = True
        await self._client.close()

    @contextlib.contextmanager
    def _ended_by_closing(self) -> Iterator[None]:
        """Raise Cancelled for what gRPC raises if the channel is closed: as if the task were cancelled, or misused."""
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            cancelling = getattr(asyncio.current_task(), "cancelling", int)  # Python 3.10 does not tell
            if not self._closed or (isinstance(error, asyncio.CancelledError) and cancelling()):
                raise
            raise Cancelled("the client was closed") from error


def _streamed(address: Address, result: Any, error: InferenceServerException | None, timeout: float | None) -> Outputs:
    """Return the outputs of a stream's response. An error without a status is the model's, others the connection's."""
    if error is None:
        return _outputs(result)
    if error.status() is None:
        raise server_error(None, error.message()) from error
    raise translated(address, error, timeout) from error


def connection_arguments(address: Address) -> dict[str, Any]:
    """Return the arguments of tritonclient's InferenceServerClient."""
    tls = address.tls
    return {
        "url": address.target,
        "ssl": address.secure,
        "root_certificates": tls.ca,
        "private_key": tls.key,
        "certificate_chain": tls.certificate,
        "channel_args": CHANNEL,
    }


def _call(address: Address, model: str, tensors: Tensors, timeout: float | None) -> dict[str, Any]:
    return {
        "model_name": model,
        "inputs": _inputs(tensors),
        "timeout": triton_timeout(timeout),
        "client_timeout": timeout,
        "headers": address.request_headers,
    }


def _inputs(tensors: Tensors) -> list[triton.InferInput]:
    return [
        triton.InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype)).set_data_from_numpy(tensor)
        for name, tensor in tensors.items()
    ]


def _outputs(result: triton.InferResult) -> Outputs:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _not_described(address: Address, error: InferenceServerException, timeout: float) -> Florence2Error:
    """Return the exception for a failed `describe`. What is closed stays closed, although Triton says UNAVAILABLE."""
    if RESTRICTED in error.message() or NOT_TRITON.search(error.message()):
        return not_shown(address)
    return translated(address, error, timeout)


def translated(address: Address, error: InferenceServerException, timeout: float | None) -> Florence2Error:
    """Return the exception for a failed call."""
    status, message = (error.status() or "").removeprefix("StatusCode."), error.message()
    if status == "DEADLINE_EXCEEDED" and timeout is not None:
        return deadline_exceeded(timeout)
    if status == "UNAVAILABLE" and NO_CONNECTION.search(message):
        return connection_failed(address, message)
    if status == "UNIMPLEMENTED" and NOT_TRITON.search(message):
        return ConnectionFailed(f"a gRPC server that is not Triton answers at {address}; {PORTS}")
    return server_error(status, message)
