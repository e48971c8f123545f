"""What both clients share, without I/O: one request with its retries, and many requests in flight.

Sending a request twice does no harm, so retries depend only on whether they can help: an overloaded or absent server
may recover; a mistake in the request, a fault of the server and a missed deadline stay as they are.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from florence2.answers import Answer
from florence2.errors import (
    DeadlineExceeded,
    Florence2Error,
    InternalError,
    InvalidOption,
    ModelNotFound,
    Unavailable,
)
from florence2_client.images import EncodedImage, ImageLike
from florence2_client.request import Options, Region, Request, Tensors, require_timeout
from florence2_client.result import Result, result_from_tensors
from florence2_client.results import failure
from florence2_client.tasks import Prompted

LOG = logging.getLogger("florence2_client.retry")
FIRST_WAIT = 0.1  # seconds
LONGEST_WAIT = 5.0


class Retry:
    """When to send one request again: `timeout` bounds all attempts, `retry_for` the time since the first failure."""

    def __init__(self, timeout: float | None, retry_for: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._retry_for = retry_for
        self._retry_until: float | None = None
        self._wait = FIRST_WAIT

    def remaining(self) -> float | None:
        """Return the seconds left for the next attempt, None without a limit."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 1e-3)

    def wait_after(self, error: Unavailable) -> float:
        """Return the seconds to wait before the next attempt; raise the error if that would be too late or useless.

        Waits double. Each is shortened at random to as little as half, so that many clients do not return in step.
        """
        now = self._clock()
        if self._retry_until is None:
            self._retry_until = now + self._retry_for
        wait = self._wait * random.uniform(0.5, 1.0)
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        late = now + wait > self._retry_until or (self._deadline is not None and now + wait >= self._deadline)
        if isinstance(error, DeadlineExceeded) or late:
            raise error
        LOG.info("%s; retrying for up to %.0f seconds", error, self._retry_until - now)
        return wait


def require_retry_for(seconds: float) -> None:
    """Raise InvalidOption if this is no time to retry for. Infinity retries without end, and NaN would do so too."""
    if not (isinstance(seconds, (int, float, np.number)) and seconds >= 0):
        raise InvalidOption(f"retry_for must be a number of seconds, at least 0, not {seconds!r}")


class Exchange:
    """One request from its first attempt to its result.

    The clients send `attempt()` through their transports, read the outputs with `read()`, and sleep for `wait_after()`.
    """

    def __init__(self, model: str, request: Request, retry_for: float, *, stream: bool = False) -> None:
        self._model = f"{model.removesuffix('_ensemble')}_stream" if stream else model
        self._request = request
        self._retry = Retry(request.timeout, retry_for)
        self._stream = stream
        self._last: Result[Answer] | None = None

    @property
    def finished(self) -> bool:
        """Return whether the final result was read."""
        return self._last is not None and self._last.final

    def attempt(self) -> tuple[str, Tensors, float | None]:
        """Return the arguments for the transport: model, tensors, and the seconds left."""
        return self._model, self._request.tensors, self._retry.remaining()

    def read(self, outputs: Mapping[str, np.ndarray[Any, Any] | None]) -> Result[Answer]:
        """Return the result that the model's outputs hold. Raise InternalError if they are not Florence-2's."""
        self._last = result_from_tensors(outputs, self._request.image_size, self._request.prompt_text)
        return self._last

    def incomplete(self) -> InternalError:
        """Return the error for a stream that ended before its final result."""
        return InternalError("the server ended the answer before it was complete")

    def wait_after(self, error: Florence2Error) -> float:
        """Return the seconds to wait before the next attempt, or raise what ends the request.

        A stream that has begun is not restarted: the user has seen its beginning.
        """
        if self._stream and isinstance(error, ModelNotFound):
            remedy = "start it with `florence2 serve --stream`"
            raise ModelNotFound(f"the server has no model {self._model}, so it does not stream; {remedy}") from error
        if not isinstance(error, Unavailable) or self._last is not None:
            raise error
        return self._retry.wait_after(error)


@dataclass(frozen=True, eq=False)
class Question:
    """A request for `run_many`: one image and one task. `key` is yours, to recognize the reply by.

    >>> question = Question("scene.png", "od", key=7, options={"num_beams": 1})
    """

    image: ImageLike
    task: str
    text: Region | None = None
    key: Any = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, eq=False)
class Reply:
    """The response to a Question: a result or an error.

    >>> [reply] = client.run_many([("no-such.png", "od")])
    >>> reply.result is None, str(reply.error)
    (True, 'there is no file no-such.png')
    """

    question: Question
    result: Result[Answer] | None
    error: Florence2Error | None

    def unwrap(self) -> Result[Answer]:
        """Return the result, or raise the error.

        >>> [reply] = client.run_many([("scene.png", "ocr")])
        >>> reply.unwrap().answer.text
        'HELLO TRITON'
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def as_result(self) -> Result[Any]:
        """Return the result, or one that holds the error.

        >>> [reply] = client.run_many([("no-such.png", "ocr")])
        >>> reply.as_result().error
        InvalidImage('there is no file no-such.png')
        """
        if self.error is None:
            return self.unwrap()
        return failure(self.question.task, self.question.text, self.error)


def questions_about(image: EncodedImage, prompts: Iterable[Prompted], options: Options) -> Iterator[Question]:
    """Return a question per task and text, all about one image. Their `timeout` is one for all of them together.

    The questions are made as they are sent, so each one's own timeout is what is left of the common one by then.
    """
    left = shared_timeout(options)
    return (Question(image, task, text, options={**options, "max_side": None, **left()}) for task, text in prompts)


def shared_timeout(options: Options) -> Callable[[], Options]:
    """Return a function that returns what is left of the timeout, for one of several requests. It starts now."""
    require_timeout(timeout := options.get("timeout"))
    end = time.monotonic() + (timeout or 0)
    return lambda: {"timeout": max(end - time.monotonic(), 1e-3)} if timeout else {}


Asked: TypeAlias = "Question | tuple[ImageLike, str] | tuple[ImageLike, str, Region | None]"


class Job(Protocol):
    """A `concurrent.futures.Future` or an `asyncio.Task`."""

    def done(self) -> bool:
        """Return whether the job has ended."""


JobT = TypeVar("JobT", bound=Job)


class InFlight(Generic[JobT]):
    """The jobs of `run_many`: at most `concurrency` running, and at most twice as many started but not yet yielded.

    In order, a slow job holds back the faster ones behind it; the difference keeps the server busy meanwhile.
    """

    def __init__(
        self, asked: Iterable[Asked], start: Callable[[Question], JobT], concurrency: int, ordered: bool
    ) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, (int, np.integer)) or concurrency < 1:
            raise InvalidOption(f"concurrency must be at least 1, a whole number, not {concurrency!r}")
        self._waiting = (item if isinstance(item, Question) else Question(*item) for item in asked)
        self._start = start
        self._concurrency = concurrency
        self._ordered = ordered
        self.jobs: list[JobT] = []

    @property
    def running(self) -> list[JobT]:
        """Return the jobs that have not ended."""
        return [job for job in self.jobs if not job.done()]

    def __iter__(self) -> Iterator[JobT | None]:
        """Start jobs while there is room and yield finished ones; yield None when a running job must end first."""
        while True:
            self._fill()
            candidates = self.jobs[:1] if self._ordered else self.jobs
            job = next((job for job in candidates if job.done()), None)
            if job is not None:
                self.jobs.remove(job)
                self._fill()  # the server works on while the user looks at this reply
                yield job
            elif self.jobs:
                yield None
            else:
                return

    def _fill(self) -> None:
        while len(self.jobs) < 2 * self._concurrency and len(self.running) < self._concurrency:
            question = next(self._waiting, None)
            if question is None:
                return
            self.jobs.append(self._start(question))
