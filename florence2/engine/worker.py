"""The threads around the engine: callers hand jobs in, an engine thread steps, a sender thread hands answers out.

Every job handed in is answered exactly once, whatever happens: a failed step, a dead engine, a deadline, a caller who
went away, a stop. Answers leave from a thread of their own, since sending blocks for most of a millisecond.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from florence2.engine.beam import Generation
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request, Sequence
from florence2.errors import Cancelled, DeadlineExceeded, Florence2Error, InternalError, Unavailable

log = logging.getLogger(__name__)

Outcome = Generation | Florence2Error
POLL_SECONDS = 0.1  # asking Triton whether a caller went away costs up to 0.13 ms: not every step
STOP_SECONDS = 5.0


@dataclass(eq=False)
class Job:
    """A request with the way to answer it. `cancelled` is never called once the answer is on its way."""

    request: Request
    answer: Callable[[Outcome], None]
    cancelled: Callable[[], bool] = lambda: False
    deadline: float = float("inf")  # of time.monotonic()
    sequence: Sequence | None = None
    next_poll: float = field(default_factory=lambda: time.monotonic() + POLL_SECONDS)


class Worker:
    """Runs an engine. `submit` may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._jobs: dict[Sequence, Job] = {}  # of the engine thread alone
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None wakes the engine up to stop
        self._outbox: queue.SimpleQueue[tuple[Job, Outcome] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nobody enters the inbox after the last look into it
        self._closed: str | None = None
        self._sender = threading.Thread(target=self._send, name="florence2-sender", daemon=True)
        self._thread = threading.Thread(target=self._run, name="florence2-engine", daemon=True)
        self._sender.start()
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Raises InvalidRequest on a request that cannot be decoded, Unavailable when the engine is down."""
        self.engine.check(job.request)
        with self._lock:
            if self._closed:
                raise Unavailable(self._closed)
            self._inbox.put(job)

    def stop(self) -> None:
        """Answers whoever is left with Unavailable and ends the threads."""
        self._close("the decoder is shutting down")
        self._thread.join(STOP_SECONDS)
        self._sender.join(STOP_SECONDS)

    def _close(self, reason: str) -> None:
        with self._lock:
            self._closed = self._closed or reason
        self._inbox.put(None)

    def _run(self) -> None:
        last_words: Florence2Error = Unavailable("the decoder is shutting down")
        try:
            while not self._closed:
                self._receive()
                self._drop_the_late()
                self._step()
        except BaseException:  # nobody may wait for ever, even if the thread is being torn down
            log.exception("the engine thread died")
            last_words = InternalError("the decoder stopped working; see the server's log")
            self._close("the decoder stopped working and must be restarted; see the server's log")
        finally:
            self._answer_everybody(last_words)
            self._outbox.put(None)

    def _receive(self) -> None:
        """Takes all who came in; waits for the first one when there is nothing else to do."""
        idle = self.engine.scheduler.idle
        while idle or not self._inbox.empty():
            job = self._inbox.get()
            if job is not None:
                self._add(job)
            idle = False

    def _add(self, job: Job) -> None:
        try:
            job.sequence = self.engine.add(job.request)
        except Florence2Error as error:
            self._outbox.put((job, error))
        else:
            self._jobs[job.sequence] = job

    def _drop_the_late(self) -> None:
        """Ends, waiting or live, whose deadline passed or whose caller went away."""
        now = time.monotonic()
        for sequence, job in self._jobs.items():
            if now >= job.deadline:
                sequence.finish(DeadlineExceeded("the request's time limit passed before its answer was complete"))
            elif now >= job.next_poll:
                job.next_poll = now + POLL_SECONDS
                if _has_gone(job):
                    sequence.finish(Cancelled("the caller cancelled the request"))

    def _step(self) -> None:
        try:
            done = self.engine.step()
        except Exception:  # for example out of memory: answer the batch, go on with those who wait
            log.exception("a decoder step failed")
            done = self.engine.fail_live()
            if not done:  # nobody to blame, so the next step would fail alike, for ever
                raise
        for sequence in done:
            assert sequence.outcome is not None
            self._outbox.put((self._jobs.pop(sequence), sequence.outcome))

    def _answer_everybody(self, error: Florence2Error) -> None:
        for job in self._jobs.values():
            self._outbox.put((job, error))
        self._jobs.clear()
        while not self._inbox.empty():
            late = self._inbox.get()
            if late is not None:
                self._outbox.put((late, error))

    def _send(self) -> None:
        while (item := self._outbox.get()) is not None:
            job, outcome = item
            try:
                job.answer(outcome)
            except Exception:  # one caller's trouble; the next one wants an answer too
                log.exception("an answer could not be sent")
            del item, job, outcome  # Triton's request objects must go at once


def _has_gone(job: Job) -> bool:
    try:
        return job.cancelled()
    except Exception:  # not knowing costs this caller some steps, dying would cost everybody the answer
        log.exception("a caller could not be asked whether it cancelled")
        return False
