"""The one exception tree. Every layer raises these; the Triton adapter and the command line translate them once.

Florence2Error
├── InvalidRequest          the caller's mistake, named in one sentence        INVALID_ARGUMENT   exit 2
│   ├── InvalidImage        unreadable, of an unknown format, or too large
│   ├── InvalidPrompt       missing, superfluous or malformed task or text
│   ├── InvalidOption       a generation option out of its range
│   └── ModelNotFound       the server has no model of that name (raised by the client alone)
├── Unavailable             try again later                                    UNAVAILABLE        exit 3
│   ├── QueueFull           the decoder accepts no more requests just now
│   ├── DeadlineExceeded    the request's own time limit passed
│   └── ConnectionFailed    no server answers (raised by the client alone)
├── Cancelled               the caller went away                               CANCELLED          exit 3
├── InternalError           our fault; the details are in the server's log     INTERNAL           exit 1
├── CheckpointError         a checkpoint or exported model is missing, damaged or foreign         exit 1
└── ServerError             the embedded server cannot start or stopped                           exit 1
"""


class Florence2Error(Exception):
    """Base of all errors; `str(error)` is one sentence that a caller may read."""

    exit_code = 1


class InvalidRequest(Florence2Error):
    """The caller's mistake."""

    exit_code = 2


class InvalidImage(InvalidRequest):
    """The picture cannot be read, has an unknown format, or has too many pixels."""


class InvalidPrompt(InvalidRequest):
    """The task or its text is missing, superfluous or malformed."""


class InvalidOption(InvalidRequest):
    """A generation option is out of its range."""


class ModelNotFound(InvalidRequest):
    """The server has no model of that name, or is loading it. Raised by the client alone."""


class Unavailable(Florence2Error):
    """The request may succeed later."""

    exit_code = 3


class QueueFull(Unavailable):
    """The decoder accepts no more requests just now."""


class DeadlineExceeded(Unavailable):
    """The request's own time limit passed."""


class ConnectionFailed(Unavailable):
    """No server answers at the address. Raised by the client alone."""


class Cancelled(Florence2Error):
    """The caller went away before the answer was ready."""

    exit_code = 3


class InternalError(Florence2Error):
    """Our fault. The message holds no path, code line or traceback."""


class CheckpointError(Florence2Error):
    """A checkpoint or an exported model is missing, damaged or not Florence-2."""


class ServerError(Florence2Error):
    """The embedded server cannot start, or stopped by itself."""
