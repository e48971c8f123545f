"""Translate the failures of the server and of the network into the exception tree.

Our models begin every message with a code, which decides. Messages without one are Triton's own: the status decides, or
in a stream, which has no status, the words that Triton documents for it.
"""

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
from florence2_client.transports.base import Address
from florence2_client.transports.listener import wrong_listener

BY_STATUS: dict[str, type[Florence2Error]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": ModelNotFound,
    "UNIMPLEMENTED": InvalidRequest,  # infer for a model that streams
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}
HTTP_STATUS = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
CODED = re.compile(rf"({'|'.join(ERROR_CODES)}): (.*)")
# Triton's words for a model that it is loading or unloading, after a restart for example: a retry can help.
NOT_LOADED = re.compile("has no available versions|is not at ready state")
# Triton's own messages in a stream. Everything else without a code is a failure of the server.
IN_STREAM: tuple[tuple[re.Pattern[str], type[Florence2Error]], ...] = (
    (re.compile("unknown model"), ModelNotFound),
    (re.compile("[Uu]nexpected inference input|expected \\d+ inputs but got|[Ii]nvalid argument"), InvalidRequest),
    (re.compile("Server is (stopping|shutting down|not ready)"), Unavailable),
)
# What gRPC reports as UNAVAILABLE, the status of an overloaded server, when it reached no server at all.
NO_CONNECTION = re.compile(
    "failed to connect|all backends failing|errors resolving|dns resolution|socket closed|connection (reset|aborted)|"
    "recvmsg|broken pipe",
    re.IGNORECASE,
)
# What another gRPC server says to a request for Triton.
NOT_TRITON = re.compile("method not found|unknown (service|method)", re.IGNORECASE)
RESTRICTED = "is restricted"  # Triton's words for an API that is closed, over both protocols
UNKNOWN, TIMED_OUT = "unknown host", "timed out"
# What Triton writes before the message of a model.
PREFIXES = re.compile(
    r"^(\[request id: [^\]]*\] "
    r"|in ensemble '[^']*', "
    r"|Failed to process the request\(s\) for model (instance )?'[^']*', message: )+"
)


def server_error(status: str | None, message: str) -> Florence2Error:
    """Return the exception for a server's message. `status` is gRPC's name for it, None in a stream, which has none."""
    sentence = PREFIXES.sub("", message.strip()).strip().partition("\n")[0].strip() or "the server gave no reason"
    if coded := CODED.match(sentence):
        return ERROR_CODES[coded[1]](coded[2])
    if NOT_LOADED.search(sentence):
        return Unavailable(sentence)
    if status is None:
        return next((kind for words, kind in IN_STREAM if words.search(sentence)), InternalError)(sentence)
    return BY_STATUS.get(status, InternalError)(sentence)


def deadline_exceeded(timeout: float) -> DeadlineExceeded:
    """Return the error for a response that did not arrive in time."""
    return DeadlineExceeded(f"no answer within {timeout:g} seconds")


def not_shown(address: Address) -> InvalidRequest:
    """Return the error for a server or proxy that shows no configuration; it may answer requests all the same."""
    return InvalidRequest(f"{address} does not show what it serves")


def connection_failed(address: Address, reason: object) -> ConnectionFailed:
    """Return the error for an address where no server answers, or none that speaks the protocol.

    Unless the host is unknown or silent, this asks the port what it speaks, which takes up to a few seconds. A refused
    connection says little: gRPC names only one of the addresses of a name such as localhost.
    """
    words = _short(str(reason))
    if words not in (UNKNOWN, TIMED_OUT) and not address.others and (found := wrong_listener(address)):
        return ConnectionFailed(f"no answer from {address}: {found}")
    return ConnectionFailed(
        f"no answer from {address} ({words}); is the server running? Start it with `florence2 serve`"
    )


def _short(reason: str) -> str:
    """Sum up the chains of causes that gRPC and the system report in a few plain words."""
    for signs, words in (
        ("refused", "connection refused"),
        ("not known|resolving|resolution|name not found", UNKNOWN),
        (r"HTTP/2|Expected HTTP|[\x00-\x08]", "that port speaks another protocol"),
        ("certificate", "its certificate is not trusted"),
        ("socket closed|reset by peer|disconnected", "the connection was closed"),
        ("timed out|timeout", TIMED_OUT),
    ):
        if re.search(signs, reason, re.IGNORECASE):
            return words
    return reason.strip().partition("\n")[0].rsplit(": ", 1)[-1].rstrip(".").lower()
