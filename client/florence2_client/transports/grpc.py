"""Transports over gRPC: one channel each, shared by all threads or tasks.

Requests go in turn to all servers that the address stands for, each over a connection of its own, past those that are
away.
"""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import AsyncGenerator, Generator
from typing import Any

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from florence2.errors import Cancelled, Florence2Error
from florence2_client.request import Tensors
from florence2_client.transports.base import Address, Outputs, triton_inputs, triton_timeout
from florence2_client.transports.errors import (
    NO_CONNECTION,
    connection_failed,
    deadline_exceeded,
    streamed_error,
    triton_error,
)

CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),  # gRPC's own is two minutes: a restarted server would seem dead
    # gRPC's own choice is the first server alone, whatever comes after
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.enable_http_proxy", 0),  # a company's http_proxy would swallow requests to 127.0.0.1
]


class GrpcTransport:
    """Closing it ends requests that are under way."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = triton.InferenceServerClient(**_connection(address))
        self._streams: set[Any] = set()

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        try:
            result = self._client.infer(**_call(self._address, model, tensors, timeout))
        except InferenceServerException as error:
            raise _translated(self._address, error, timeout) from error
        except ValueError as error:  # gRPC's word for a channel that another thread has closed
            raise Cancelled("the client was closed") from error
        return _outputs(result)

    def stream(self, model: str, tensors: Tensors, timeout: float | None) -> Generator[Outputs, None, None]:
        """By a client of its own: one of tritonclient has one stream at a time. The connection underneath is shared."""
        arrivals: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

        def arrive(result: Any, error: Any) -> None:
            arrivals.put((result, error))

        client = triton.InferenceServerClient(**_connection(self._address))
        self._streams.add(client)
        try:
            client.start_stream(arrive, stream_timeout=timeout, headers=dict(self._address.headers))
            with contextlib.suppress(InferenceServerException):  # it has ended already, and the reason arrives
                client.async_stream_infer(
                    model, triton_inputs(triton.InferInput, tensors), timeout=triton_timeout(timeout)
                )
            while True:
                yield _streamed(self._address, *arrivals.get(), timeout)
        finally:
            self._streams.discard(client)
            client.stop_stream(cancel_requests=True)
            client.close()

    def close(self) -> None:
        for client in list(self._streams):
            client.stop_stream(cancel_requests=True)
        self._client.close()


class AsyncGrpcTransport:
    """Cancelling `infer` cancels the call."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = triton_aio.InferenceServerClient(**_connection(address))

    async def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        try:
            result = await self._client.infer(**_call(self._address, model, tensors, timeout))
        except InferenceServerException as error:
            raise _translated(self._address, error, timeout) from error
        return _outputs(result)

    async def stream(self, model: str, tensors: Tensors, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        async def requests() -> AsyncGenerator[dict[str, Any], None]:
            inputs = triton_inputs(triton.InferInput, tensors)
            yield {"model_name": model, "inputs": inputs, "timeout": triton_timeout(timeout)}

        headers = dict(self._address.headers)
        arrivals = self._client.stream_infer(requests(), stream_timeout=timeout, headers=headers)
        try:
            async for result, error in arrivals:
                yield _streamed(self._address, result, error, timeout)
        except grpc.RpcError as error:
            raise _translated(self._address, _named(error), timeout) from error
        finally:
            arrivals.cancel()

    async def close(self) -> None:
        await self._client.close()


def _streamed(address: Address, result: Any, error: InferenceServerException | None, timeout: float | None) -> Outputs:
    """One of a stream's responses. An error without a status is in the model's words, others are the connection's."""
    if error is None:
        return _outputs(result)
    if error.status() is None:
        raise streamed_error(error.message()) from error
    raise _translated(address, error, timeout) from error


def _named(error: Any) -> InferenceServerException:
    """As tritonclient has it everywhere but in asyncio's streams."""
    return InferenceServerException(error.details(), str(error.code()))


def _connection(address: Address) -> dict[str, Any]:
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
        "inputs": triton_inputs(triton.InferInput, tensors),
        "timeout": triton_timeout(timeout),
        "client_timeout": timeout,
        "headers": dict(address.headers),
    }


def _outputs(result: triton.InferResult) -> Outputs:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _translated(address: Address, error: InferenceServerException, timeout: float | None) -> Florence2Error:
    status, message = (error.status() or "").removeprefix("StatusCode."), error.message()
    if status == "DEADLINE_EXCEEDED" and timeout is not None:
        return deadline_exceeded(timeout)
    if status == "UNAVAILABLE" and NO_CONNECTION.search(message):
        return connection_failed(address, message)
    return triton_error(status, message)
