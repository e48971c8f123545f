"""Answer failures in OpenAI's form, with our codes."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import JSONResponse

from florence2.contract import OPTIONS
from florence2.errors import (
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    Florence2Error,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    Unavailable,
)

STATUS: tuple[tuple[type[Florence2Error], int], ...] = (  # subclasses first
    (ModelNotFound, 404),
    (InvalidRequest, 400),
    (QueueFull, 429),
    (DeadlineExceeded, 504),
    (ConnectionFailed, 503),
    (Unavailable, 503),
    (Cancelled, 499),  # nginx's number; the client has gone
    (Florence2Error, 500),
)
TYPES = {429: "rate_limit_error", 401: "authentication_error"}
RETRY_SECONDS = 2  # when an overloaded or absent server may have recovered
TENSORS = re.compile(rf"\b({'|'.join(option.name for option in OPTIONS)})\b")


class Refused(Exception):
    """The gateway itself refuses a request."""

    def __init__(self, status: int, code: str, sentence: str, *, retry_after: int | None = None) -> None:
        """Take the HTTP status, our code, and one sentence."""
        super().__init__(sentence)
        self.status, self.code, self.retry_after = status, code, retry_after


class AsciiJson(JSONResponse):
    """JSON that can hold any text that a client sent, half a surrogate pair included."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def error_body(error: Florence2Error | Refused, param: str | None = None) -> dict[str, Any]:
    """Return the body for an error. Options go by the names that requests of this API have for them."""
    sentence = TENSORS.sub(lambda name: name[0].lower(), str(error))
    default = "invalid_request_error" if status_of(error) < 500 else "server_error"
    kind = TYPES.get(status_of(error), default)
    return {"error": {"message": sentence, "type": kind, "param": param, "code": error.code}}


def status_of(error: Florence2Error | Refused) -> int:
    """Return the HTTP status for an error."""
    if isinstance(error, Refused):
        return error.status
    return next(status for kind, status in STATUS if isinstance(error, kind))


def error_response(error: Florence2Error | Refused, param: str | None = None, *, path: str = "") -> AsciiJson:
    """Return the response for an error; one that may go away says when to try again.

    `path`: of the request. Clients of X-AnyLabeling's protocol look for `success`.
    """
    status, headers = status_of(error), {}
    if isinstance(error, Refused):
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    elif status in (429, 503):
        headers = {"Retry-After": str(RETRY_SECONDS)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    told = {"success": False} if path.startswith("/x-anylabeling/") else {}
    return AsciiJson({**told, **error_body(error, param)}, status, headers)
