"""Answers that come piece by piece: which model gives them, and Triton's `generate_stream` for the HTTP transports.

Over gRPC tritonclient does all of it. Either way each response has the ensemble's outputs, of the whole answer so far.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from florence2.errors import InternalError, InvalidOption, ModelNotFound
from florence2_client.request import Tensors
from florence2_client.transports.base import Outputs
from florence2_client.transports.errors import streamed_error

PREFIX = b"data:"


def stream_model(model: str) -> str:
    """The twin of an ensemble that streams."""
    return f"{model.removesuffix('_ensemble')}_stream"


def does_not_stream(model: str) -> ModelNotFound:
    return ModelNotFound(
        f"the server has no model {model}, so it does not stream; start it with `florence2 serve --stream`"
    )


def broken_off() -> InternalError:
    return InternalError("the server ended the answer before it was complete")


def generate_body(tensors: Tensors) -> bytes:
    """The request as JSON, the picture as base64. Raises InvalidOption on a number that JSON does not have."""
    values = {name: _json_value(name, tensor.reshape(-1)[0]) for name, tensor in tensors.items()}
    try:
        return json.dumps(values, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidOption("an option is not a finite number") from error


def _json_value(name: str, value: Any) -> Any:
    if name == "IMAGE":
        return base64.b64encode(value).decode()
    return value.decode("utf-8") if isinstance(value, bytes) else value.item()


def event_outputs(line: bytes) -> Outputs | None:
    """Of a line of server-sent events; None for one without data. Raises what the server reports in it."""
    if not line.startswith(PREFIX):
        return None
    try:
        event = json.loads(line[len(PREFIX) :])
        values = {name: value.encode() if isinstance(value, str) else value for name, value in event.items()}
    except (ValueError, AttributeError) as error:
        raise InternalError("the server's answer is not one of Triton's") from error
    if "error" in event:
        raise streamed_error(str(event["error"]))
    return {name: np.array(value, dtype=object if isinstance(value, bytes) else None) for name, value in values.items()}
