"""Many questions in flight: what goes in, what comes out, and how much is held at once. No threads, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from florence2.answers import Answer
from florence2.errors import Florence2Error, InvalidOption
from florence2_client.images import Picture
from florence2_client.request import Options, Region
from florence2_client.result import Result


@dataclass(frozen=True, eq=False)
class Question:
    """One picture and one task, for `run_many`. `key` is the caller's own, to know the answer by.

    >>> question = Question("scene.png", "od", key=7, options={"num_beams": 1})
    """

    image: Picture
    task: str
    text: Region | None = None
    key: Any = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, eq=False)
class Reply:
    """A question with its result, or with the error that took its place.

    >>> [reply] = client.run_many([("no-such.png", "od")])
    >>> reply.result is None, str(reply.error)
    (True, 'there is no file no-such.png')
    """

    question: Question
    result: Result[Answer] | None
    error: Florence2Error | None

    def unwrap(self) -> Result[Answer]:
        """The result; raises the error if there is one.

        >>> [reply] = client.run_many([("scene.png", "ocr")])
        >>> reply.unwrap().answer.text
        'HELLO TRITON'
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


Asked: TypeAlias = "Question | tuple[Picture, str] | tuple[Picture, str, Region | None]"


def questions(asked: Iterable[Asked]) -> Iterator[Question]:
    """As they come; `(image, task)` and `(image, task, text)` are questions too."""
    return (item if isinstance(item, Question) else Question(*item) for item in asked)


class Job(Protocol):
    """A `concurrent.futures.Future` or an `asyncio.Task`."""

    def done(self) -> bool: ...


JobT = TypeVar("JobT", bound=Job)


class InFlight(Generic[JobT]):
    """The jobs under way and those that wait to be handed out: never more than twice `concurrency` together.

    In order, a slow job holds back faster ones behind it; that is what the second half is for.
    """

    def __init__(self, concurrency: int, ordered: bool) -> None:
        if concurrency < 1:
            raise InvalidOption(f"concurrency must be at least 1, not {concurrency}")
        self._concurrency = concurrency
        self._ordered = ordered
        self.jobs: list[JobT] = []

    @property
    def running(self) -> list[JobT]:
        return [job for job in self.jobs if not job.done()]

    def fill(self, waiting: Iterator[Question], start: Callable[[Question], JobT]) -> None:
        """Starts questions while there is room."""
        while len(self.jobs) < 2 * self._concurrency and len(self.running) < self._concurrency:
            question = next(waiting, None)
            if question is None:
                return
            self.jobs.append(start(question))

    def take_finished(self) -> JobT | None:
        """The next job to hand out, removed; None if there is none yet."""
        candidates = self.jobs[:1] if self._ordered else self.jobs
        job = next((job for job in candidates if job.done()), None)
        if job is not None:
            self.jobs.remove(job)
        return job
