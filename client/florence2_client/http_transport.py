"""Transport over HTTP: tritonclient's HTTP client belongs to one thread, so each thread gets its own, kept alive."""

from __future__ import annotations

import http.client
import threading
import weakref

import gevent
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from florence2.errors import Florence2Error, InternalError
from florence2_client.failures import HTTP_STATUS, connection_failed, deadline_exceeded, triton_error
from florence2_client.request import Tensors
from florence2_client.transport import Address, Outputs, triton_inputs, triton_timeout

CONNECT_SECONDS = 20.0  # as gRPC


class HttpTransport:
    """Holds one idle client per thread."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle = threading.local()
        self._open: weakref.WeakSet[triton.InferenceServerClient] = weakref.WeakSet()

    def infer(self, model: str, tensors: Tensors, timeout: float | None) -> Outputs:
        limit = gevent.Timeout(timeout)
        try:
            with limit:
                result = self._request(model, tensors, timeout)
        except InferenceServerException as error:
            raise _translated(error) from error
        except gevent.Timeout as error:
            if timeout is None or error is not limit:  # the caller's own
                raise
            raise deadline_exceeded(timeout) from error
        except (OSError, http.client.HTTPException) as error:
            raise connection_failed(self._address, error) from error
        return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}

    def close(self) -> None:
        """Explicitly: a server that is asked to stop waits for connections that are still open."""
        for client in list(self._open):
            client.close()

    def _request(self, model: str, tensors: Tensors, timeout: float | None) -> triton.InferResult:
        """A client goes back to be reused only after a whole answer: half of one must not meet the next request."""
        client = vars(self._idle).pop("client", None) or self._connect()
        inputs = triton_inputs(triton.InferInput, tensors)
        try:
            result = client.infer(model, inputs, timeout=triton_timeout(timeout))
        except InferenceServerException:
            self._idle.client = client
            raise
        self._idle.client = client
        return result

    def _connect(self) -> triton.InferenceServerClient:
        client = triton.InferenceServerClient(
            self._address.target,
            ssl=self._address.secure,
            connection_timeout=CONNECT_SECONDS,
            network_timeout=None,  # a request has its own limit, and without one an answer may take minutes
        )
        self._open.add(client)
        return client


def _translated(error: InferenceServerException) -> Florence2Error:
    code = error.status() or ""
    if error.debug_details() is not None:  # tritonclient's sign for a body that is not Triton's
        return InternalError(f"the server answered with HTTP status {code} and no reason")
    return triton_error(HTTP_STATUS.get(code, "INTERNAL"), error.message())
