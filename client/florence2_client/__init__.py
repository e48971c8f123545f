"""Client library of Florence-2 on Triton.

    from florence2_client import Client

    with Client("grpc://127.0.0.1:8001") as client:
        result = client.detect("street.jpg")
        print(result.answer.labels)
        result.draw("street.jpg").save("street.od.png")

`AsyncClient` has the same methods for asyncio. Errors:

Florence2Error
├── InvalidRequest          the client's mistake, named in one sentence
│   ├── InvalidImage        unreadable, of an unknown format, or too large
│   ├── InvalidPrompt       a task or text that is missing, superfluous or malformed
│   ├── InvalidOption       a generation option out of its range
│   └── ModelNotFound       the server has no model of that name
├── Unavailable             try again later; was retried for `retry_for` seconds
│   ├── DeadlineExceeded    a time limit passed before the answer was complete; not retried
│   └── ConnectionFailed    no server answers at the address
├── Cancelled               the client was closed before the answer was complete
└── InternalError           the server failed; its log has the details
"""

from florence2.errors import (
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    Florence2Error,
    InternalError,
    InvalidImage,
    InvalidOption,
    InvalidPrompt,
    InvalidRequest,
    ModelNotFound,
    Unavailable,
)
from florence2_client.async_client import AsyncClient
from florence2_client.client import Client
from florence2_client.documents import pages
from florence2_client.drawing import draw
from florence2_client.exchange import Question, Reply
from florence2_client.labeling import label
from florence2_client.objects import Found
from florence2_client.request import Options
from florence2_client.result import Result
from florence2_client.results import Failure, Results
from florence2_client.tasks import ParsedTask, Prompt, UnmarkedPrompt, parse_task
from florence2_client.tiling import Tiles
from florence2_client.transports import Tls

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Failure",
    "Florence2Error",
    "Found",
    "InternalError",
    "InvalidImage",
    "InvalidOption",
    "InvalidPrompt",
    "InvalidRequest",
    "ModelNotFound",
    "Options",
    "ParsedTask",
    "Prompt",
    "Question",
    "Reply",
    "Result",
    "Results",
    "Tiles",
    "Tls",
    "Unavailable",
    "UnmarkedPrompt",
    "draw",
    "label",
    "pages",
    "parse_task",
]
