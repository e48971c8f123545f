"""The only exception tree. Every layer raises these; the Triton adapter and the command line translate them once each.

Florence2Error
├── InvalidRequest          INVALID_REQUEST      the client's mistake, named in one sentence
│   ├── InvalidImage        INVALID_IMAGE        unreadable, of an unknown format, or too large
│   ├── InvalidPrompt       INVALID_PROMPT       a task or text that is missing, superfluous or malformed
│   ├── InvalidOption       INVALID_OPTION       a generation option out of its range
│   └── ModelNotFound       MODEL_NOT_FOUND      the server has no model of that name
├── Unavailable             UNAVAILABLE          the request may succeed later
│   ├── QueueFull           QUEUE_FULL           the server accepts no more requests for now
│   ├── DeadlineExceeded    DEADLINE_EXCEEDED    a time limit passed before the answer was complete
│   └── ConnectionFailed    CONNECTION_FAILED    no server answers at the address
├── Cancelled               CANCELLED            the client cancelled the request
├── InternalError           INTERNAL             the server failed; its log has the details
├── CheckpointError         CHECKPOINT           a checkpoint or an exported model is missing, damaged or foreign
└── ServerError             SERVER               the embedded server could not start, or stopped by itself

On the wire an error is `CODE: sentence`. Clients map the code to an exception, never the sentence: streams and Triton's
generate extension lose the status.
"""

from __future__ import annotations

from typing import ClassVar


class Florence2Error(Exception):
    """Base of all errors. `str(error)` is one sentence for the person who reads it, without the code."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[str] = "INTERNAL"  # gRPC's and Triton's
    exit_code: ClassVar[int] = 1  # of the command line

    @property
    def wire_message(self) -> str:
        """Return the message that a server sends: `CODE: sentence`."""
        return f"{self.code}: {self}"


class InvalidRequest(Florence2Error):
    """The client's mistake: the same request fails again."""

    code = "INVALID_REQUEST"
    status = "INVALID_ARGUMENT"
    exit_code = 2


class InvalidImage(InvalidRequest):
    """The image cannot be read, has an unknown format, or is too large."""

    code = "INVALID_IMAGE"


class InvalidPrompt(InvalidRequest):
    """The task or its text is missing, superfluous, or malformed."""

    code = "INVALID_PROMPT"


class InvalidOption(InvalidRequest):
    """A generation option is out of its range."""

    code = "INVALID_OPTION"


class ModelNotFound(InvalidRequest):
    """The server has no model of that name, or is still loading it. Raised only by the client."""

    code = "MODEL_NOT_FOUND"
    status = "NOT_FOUND"


class Unavailable(Florence2Error):
    """The request may succeed later."""

    code = "UNAVAILABLE"
    status = "UNAVAILABLE"
    exit_code = 3


class QueueFull(Unavailable):
    """The server accepts no more requests for now."""

    code = "QUEUE_FULL"


class DeadlineExceeded(Unavailable):
    """The request's or the server's time limit passed before the answer was complete."""

    code = "DEADLINE_EXCEEDED"


class ConnectionFailed(Unavailable):
    """No server answers at the address. Raised only by the client."""

    code = "CONNECTION_FAILED"


class Cancelled(Florence2Error):
    """The client cancelled the request before its answer was complete."""

    code = "CANCELLED"
    status = "CANCELLED"
    exit_code = 3


class InternalError(Florence2Error):
    """The server failed. The message holds no path, code line, or traceback; the server's log has them."""


class CheckpointError(Florence2Error):
    """A checkpoint or an exported model is missing, damaged, or not Florence-2."""

    code = "CHECKPOINT"


class ServerError(Florence2Error):
    """The embedded server could not start, or stopped by itself."""

    code = "SERVER"


def _with_descendants(kind: type[Florence2Error]) -> list[type[Florence2Error]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _with_descendants(child))]


ERROR_CODES: dict[str, type[Florence2Error]] = {
    kind.code: kind for kind in _with_descendants(Florence2Error) if kind is not Florence2Error
}
# Codes that a server sends. The others are the client's own, or end a command.
SERVER_CODES = (
    "INVALID_REQUEST",
    "INVALID_IMAGE",
    "INVALID_PROMPT",
    "INVALID_OPTION",
    "UNAVAILABLE",
    "QUEUE_FULL",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "INTERNAL",
)
