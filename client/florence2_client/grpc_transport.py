"""Transports over gRPC: one channel each, shared by all threads or tasks."""

from __future__ import annotations

from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from florence2.errors import Cancelled, Florence2Error
from florence2_client.failures import NO_CONNECTION, connection_failed, deadline_exceeded, triton_error
from florence2_client.request import Tensors
from florence2_client.transport import Address, Outputs, triton_inputs, triton_timeout

CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),  # gRPC's own is two minutes: a restarted server would seem dead
    ("grpc.enable_http_proxy", 0),  # a company's http_proxy would swallow requests to 127.0.0.1
]


class GrpcTransport:
    """Closing it ends requests that are under way."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = triton.InferenceServerClient(**_connection(address))

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        try:
            result = self._client.infer(**_call(self._address, model, tensors, timeout))
        except InferenceServerException as error:
            raise _translated(self._address, error, timeout) from error
        except ValueError as error:  # gRPC's word for a channel that another thread has closed
            raise Cancelled("the client was closed") from error
        return _outputs(result)

    def close(self) -> None:
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

    async def close(self) -> None:
        await self._client.close()


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
