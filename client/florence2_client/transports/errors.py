"""Triton's and the network's failures, translated into the exception tree. The transports are its only callers."""

from __future__ import annotations

import re

from florence2.errors import (
    ERROR_CODES,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    Florence2Error,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Unavailable,
)

ERRORS: dict[str, type[Florence2Error]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": ModelNotFound,
    "UNIMPLEMENTED": InvalidRequest,  # a model that streams
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}
HTTP_STATUS = {
    "400": "INVALID_ARGUMENT",
    "404": "NOT_FOUND",
    "501": "UNIMPLEMENTED",
    "503": "UNAVAILABLE",
    "504": "DEADLINE_EXCEEDED",
}
# What gRPC itself says, under the same UNAVAILABLE a server uses, when no server was reached.
NO_CONNECTION = re.compile(
    "failed to connect|all backends failing|errors resolving|dns resolution|socket closed|connection (reset|aborted)|"
    "recvmsg|broken pipe",
    re.IGNORECASE,
)
# What Triton says of a model that it is loading or unloading, a restarted server among others: it may come (back).
NOT_LOADED = re.compile("has no available versions|is not at ready state")
# Of a stream's error Triton passes on the sentence alone, without its code. What fits none of these is the caller's.
STREAMED = (
    (re.compile("unknown model"), "NOT_FOUND"),
    (re.compile("the request's time limit passed|seconds this server allows"), "DEADLINE_EXCEEDED"),
    (re.compile("queue is full|is shutting down|must be restarted"), "UNAVAILABLE"),
    (re.compile("caller cancelled"), "CANCELLED"),
    (re.compile("failed on this|stopped working|Stub process|server failed"), "INTERNAL"),
)
# How our own models begin their messages.
CODED = re.compile(rf"({'|'.join(ERROR_CODES)}): (.*)")
# What Triton writes before a model's own sentence.
PREFIXES = re.compile(
    r"^(\[request id: [^\]]*\] "
    r"|in ensemble '[^']*', "
    r"|Failed to process the request\(s\) for model (instance )?'[^']*', message: )+"
)


def triton_error(status: str, message: str) -> Florence2Error:
    """The exception for a status name (gRPC's) and Triton's message."""
    sentence = clean_sentence(message)
    if coded := CODED.match(sentence):
        return ERROR_CODES[coded[1]](coded[2])
    kind = Unavailable if NOT_LOADED.search(message) else ERRORS.get(status, InternalError)
    return kind(sentence)


def streamed_error(message: str) -> Florence2Error:
    """The exception for an error that came in a stream."""
    status = next((status for sign, status in STREAMED if sign.search(message)), "INVALID_ARGUMENT")
    return triton_error(status, message)


def clean_sentence(message: str) -> str:
    """Triton's message without the names of the models it passed through, first line only."""
    first = PREFIXES.sub("", message.strip()).strip().partition("\n")[0]
    return first.strip() or "the server gave no reason"


def deadline_exceeded(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {timeout:g} seconds")


def connection_failed(address: object, reason: object) -> ConnectionFailed:
    """No server at the address, or none that speaks its protocol."""
    return ConnectionFailed(
        f"no answer from {address} ({_short(str(reason))}); is the server running? start it with `florence2 serve`"
    )


def _short(reason: str) -> str:
    """The end of gRPC's and the system's chains of causes, in plain words."""
    for sign, words in (
        ("refused", "connection refused"),
        ("not known|resolving|resolution|name not found", "unknown host"),
        (r"HTTP/2|Expected HTTP|[\x00-\x08]", "another protocol is spoken there"),
        ("certificate", "its certificate is not trusted"),
        ("timed out|timeout", "timed out"),
    ):
        if re.search(sign, reason, re.I):
            return words
    return clean_sentence(reason).rsplit(": ", 1)[-1].rstrip(".").lower()
