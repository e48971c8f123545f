"""What the errors of Triton and of the connection become in the client."""

from __future__ import annotations

import pytest

from florence2.errors import (
    ERROR_CODES,
    SERVER_CODES,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Unavailable,
)
from florence2_client.transports import parse_url
from florence2_client.transports.errors import connection_failed, server_error


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("NOT_FOUND", ModelNotFound),
        ("UNAVAILABLE", Unavailable),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("CANCELLED", Cancelled),
        ("INTERNAL", InternalError),
        ("DATA_LOSS", InternalError),
    ],
)
def test_status_becomes_our_exception(status, error):
    """Every status of Triton has its place in the exception tree."""
    assert type(server_error(status, "in ensemble 'florence2_ensemble', too bad")) is error


@pytest.mark.parametrize("status", [None, "INTERNAL", "INVALID_ARGUMENT", "UNAVAILABLE"])
@pytest.mark.parametrize("code", SERVER_CODES)
@pytest.mark.parametrize("prefix", ["", "in ensemble 'a', Failed to process the request(s) for model 'b', message: "])
def test_the_code_decides_and_not_the_status_or_the_sentence(prefix, code, status):
    """This holds in a stream too, which has no status, and if the sentence sounds like another error."""
    error = server_error(status, f"{prefix}{code}: the queue is full, unknown model, Stub process\n\nAt:\n  /model.py")
    assert (type(error), error.code) == (ERROR_CODES[code], code)
    assert str(error) == "the queue is full, unknown model, Stub process"


def test_a_model_that_is_loading_is_unavailable_and_an_unknown_one_is_not_found():
    """A server that starts knows the name of a model before the model is ready, so a retry may succeed."""
    loading = "Request for unknown model: 'florence2_ensemble' has no available versions"
    assert type(server_error("NOT_FOUND", loading)) is Unavailable
    assert type(server_error("NOT_FOUND", "Request for unknown model: 'x' is not found")) is ModelNotFound


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Request for unknown model: 'florence2_stream' is not found", ModelNotFound),
        ("Request for unknown model: 'florence2_stream' has no available versions", Unavailable),
        ("in ensemble 'florence2_stream', 'florence2_vision' version 1 is not at ready state", Unavailable),
        ("in ensemble 'a', Stub process 'florence2_vision_0_0' is not healthy.", InternalError),
        ("something that Triton never said before", InternalError),
    ],
)
def test_an_error_without_code_and_status_is_judged_by_its_sentence(message, kind):
    """Streams have no status, and Triton's own errors no code. What is unknown is an internal error."""
    assert type(server_error(None, message)) is kind


@pytest.mark.parametrize(
    "message",
    [
        "too bad",
        "in ensemble 'florence2_ensemble', too bad",
        "in ensemble 'a', in ensemble 'b', too bad",
        "[request id: <id_unknown>] too bad",
        "in ensemble 'a', Failed to process the request(s) for model 'b_0_0', message: too bad\n\nAt:\n  /model.py(3)",
    ],
)
def test_message_is_stripped_to_its_sentence(message):
    """Names of models, request ids and tracebacks are not for users."""
    assert str(server_error("INTERNAL", message)) == "too bad"


def test_connection_failure_names_address_and_remedy():
    """The error asks whether the server was started."""
    error = connection_failed(parse_url("http://box:8000"), ConnectionRefusedError(111, "Connection refused"))
    assert isinstance(error, ConnectionFailed)
    assert str(error) == (
        "no answer from http://box:8000 (connection refused); is the server running? Start it with `florence2 serve`"
    )
