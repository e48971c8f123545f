"""Between Triton's Python backend and the domain: tensors in and out, and errors. The only module that knows pb_utils.

The model.py of every Python model in the repository is written with these. Nothing of pb_utils but constants may be
touched at import time: it is incomplete while Triton completes configurations.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from florence2 import errors
from florence2.config import GenerationOptions, ModelConfig

Outputs = dict[str, np.ndarray]
T = TypeVar("T")


class Arguments:
    """The arguments of `TritonPythonModel.initialize`."""

    def __init__(self, args: dict[str, str]) -> None:
        self.directory = Path(args["model_repository"]) / args["model_version"]
        self.device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self._parameters = json.loads(args["model_config"]).get("parameters", {})

    def integer(self, name: str) -> int:
        """A parameter of config.pbtxt."""
        return int(self._parameters[name]["string_value"])


def array(request: Any, name: str) -> np.ndarray | None:
    """A private copy of an input tensor; None if the request leaves it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def required(request: Any, name: str) -> np.ndarray:
    return _present(array(request, name), name)


def required_scalar(request: Any, name: str) -> Any:
    return _present(scalar(request, name), name)


def required_text(request: Any, name: str) -> str:
    return _present(text(request, name), name)


def _present(value: T | None, name: str) -> T:
    if value is None:
        raise errors.InvalidRequest(f"{name} is missing")
    return value


def scalar(request: Any, name: str) -> Any:
    """The only element of an input tensor as a Python value; None if the request leaves it out."""
    value = array(request, name)
    if value is None:
        return None
    if value.size != 1:
        raise errors.InvalidRequest(f"{name} must have one element, not {value.size}")
    return value.reshape(-1)[0].item() if value.dtype != np.object_ else value.reshape(-1)[0]


def text(request: Any, name: str) -> str | None:
    """A STRING tensor's only element, decoded; None if the request leaves it out."""
    value = scalar(request, name)
    if value is None or isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.InvalidPrompt(f"{name} is not valid UTF-8") from error


def generation_options(request: Any, config: ModelConfig) -> GenerationOptions:
    """The five option tensors of the contract. Raises InvalidOption."""
    return GenerationOptions.resolve(
        config,
        max_new_tokens=scalar(request, "MAX_NEW_TOKENS"),
        num_beams=scalar(request, "NUM_BEAMS"),
        no_repeat_ngram_size=scalar(request, "NO_REPEAT_NGRAM_SIZE"),
        length_penalty=scalar(request, "LENGTH_PENALTY"),
        early_stopping=scalar(request, "EARLY_STOPPING"),
    )


def strings(*values: str) -> np.ndarray:
    """An array for a STRING tensor."""
    return np.array([value.encode("utf-8") for value in values], dtype=np.object_)


def answer_all(requests: list[Any], function: Callable[[Any], Outputs]) -> list[Any]:
    """Default-mode models: one response per request, and a request that fails costs no other its answer."""
    return [_attempt(request, function) for request in requests]


def _attempt(request: Any, function: Callable[[Any], Outputs]) -> Any:
    try:
        return response(function(request), request.requested_output_names())
    except Exception as error:  # per request: its neighbours must survive
        return error_response(error)


def response(outputs: Outputs, wanted: list[str]) -> Any:
    """Unrequested outputs are left out here: Triton 24.10 does that in `send()` without holding the GIL."""
    tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items() if not wanted or name in wanted]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def error_response(error: Exception) -> Any:
    """A Florence2Error says its sentence; anything else is logged, and the caller learns only that it is our fault."""
    if not isinstance(error, errors.Florence2Error):
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        error = errors.InternalError("the server failed on this request; see its log")
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), _code(error)))


def _code(error: errors.Florence2Error) -> int:
    codes = {
        errors.InvalidRequest: pb_utils.TritonError.INVALID_ARG,
        errors.Unavailable: pb_utils.TritonError.UNAVAILABLE,
        errors.Cancelled: pb_utils.TritonError.CANCELLED,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), pb_utils.TritonError.INTERNAL)


class Reply:
    """The way to answer a request after `execute` returned None.

    `is_cancelled` after the answer kills the whole server (Triton 24.10), so the one who answers must be the last user.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._wanted = request.requested_output_names()
        timeout = request.timeout()  # microseconds, 0 for none
        self.deadline = time.monotonic() + timeout / 1e6 if timeout else float("inf")

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

    def send(self, outputs: Outputs) -> None:
        self._send(response(outputs, self._wanted))

    def fail(self, error: Exception) -> None:
        self._send(error_response(error))

    def _send(self, message: Any) -> None:
        self._sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
