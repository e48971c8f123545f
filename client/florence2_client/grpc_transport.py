"""Transport over gRPC: one channel, shared by all threads."""

from __future__ import annotations

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from florence2.errors import Florence2Error
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
    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = triton.InferenceServerClient(address.target, ssl=address.secure, channel_args=CHANNEL)

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        inputs = triton_inputs(triton.InferInput, tensors)
        try:
            result = self._client.infer(model, inputs, timeout=triton_timeout(timeout), client_timeout=timeout)
        except InferenceServerException as error:
            raise self._translated(error, timeout) from error
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def close(self) -> None:
        self._client.close()

    def _translated(self, error: InferenceServerException, timeout: float | None) -> Florence2Error:
        status, message = (error.status() or "").removeprefix("StatusCode."), error.message()
        if status == "DEADLINE_EXCEEDED" and timeout is not None:
            return deadline_exceeded(timeout)
        if status == "UNAVAILABLE" and NO_CONNECTION.search(message):
            return connection_failed(self._address, message)
        return triton_error(status, message)
