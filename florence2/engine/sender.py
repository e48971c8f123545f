"""The thread that answers: it sends answers and partial answers, polls for cancellation, and watches time limits.

Sending blocks for most of a millisecond, so the engine thread leaves it to this one. One thread makes all calls to a
job's functions, because polling for cancellation must never happen after the answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from florence2.engine import metrics
from florence2.engine.beam import Generation
from florence2.engine.metrics import Recorder, Times
from florence2.engine.outbox import Outbox
from florence2.engine.sequence import Request, Sequence
from florence2.errors import Cancelled, DeadlineExceeded, Florence2Error, QueueFull, Unavailable

log = logging.getLogger(__name__)

Outcome = Generation | Florence2Error
POLL_SECONDS = 0.1  # asking Triton whether a request was canceled takes up to 0.13 ms
WAITING_POLL_SECONDS = 1.0  # for waiting requests: there may be hundreds, and they hold no rows
# Between two partial answers to a request. No client reads faster, and each passes through the models after this one.
FOLLOW_SECONDS = 0.02


@dataclass(eq=False)
class Job:
    """A request and the functions that answer it. `cancelled` is never called once the answer is being sent.

    `follow` gets the answer so far of a greedy search, repeatedly, until the answer; it must not block for long.
    """

    request: Request
    answer: Callable[[Outcome], None]
    cancelled: Callable[[], bool] = lambda: False
    deadline: float = float("inf")  # of time.monotonic()
    start_by: float = float("inf")  # the same; a request that still waits then has no chance to be answered soon
    task: str = metrics.OTHER_TASK
    follow: Callable[[Generation], None] | None = None
    times: Times = field(default_factory=lambda: Times(time.monotonic()))
    next_poll: float = field(default_factory=lambda: time.monotonic() + POLL_SECONDS)
    gone: bool = False  # no client waits for it any more; written by the sender, read by the engine thread
    partial: Generation | None = None  # the answer so far, if it has not been sent; then the outbox holds the job
    next_partial: float = 0.0

    def note_times(self, sequence: Sequence, started: float, now: float) -> None:
        """Note what the job's sequence reached in the step that ran from `started` to `now`."""
        if self.times.admitted is None and sequence.rows:
            self.times.admitted = started
        has_token = sequence.search.length > 1  # it counts the decoder's start token
        if self.times.first_token is None and (has_token or isinstance(sequence.outcome, Generation)):
            self.times.first_token = now


class Sender:
    """Answer each accepted job exactly once: a job is open until it gets an outcome, and the first outcome counts.

    `max_seconds`: no job is open for longer. `publish` is called once a second, and at the end.
    """

    def __init__(self, recorder: Recorder, max_seconds: float, publish: Callable[[], None]) -> None:
        self._recorder, self._max_seconds = recorder, max_seconds
        # A job without an outcome has a partial answer.
        self._outbox: Outbox[tuple[Job, Outcome | None]] = Outbox(
            self._deliver, publish, self._check_open_jobs, POLL_SECONDS
        )
        # Guards the next two, so that no job is added after the last look at the open ones; and the partial answers.
        self._lock = threading.Lock()
        self._open: set[Job] = set()
        self.closed: str | None = None  # the reason, once no more jobs are accepted
        self._outbox.start()

    def accept(self, job: Job) -> None:
        """Take responsibility for the job's answer. Raises Unavailable after `close`."""
        with self._lock:
            if self.closed:
                raise Unavailable(self.closed)
            self._open.add(job)

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Give the job an outcome, unless it has one already."""
        with self._lock:
            if job not in self._open:
                return
            self._open.remove(job)
        self._recorder.finished(job.task, outcome, job.times, time.monotonic())
        self._outbox.put((job, outcome))

    def follow(self, job: Job, partial: Generation, now: float) -> None:
        """Send the answer so far to a job that wants it. Only the newest is kept, however slowly it is sent."""
        job.next_partial = now + FOLLOW_SECONDS
        with self._lock:
            queued, job.partial = job.partial is not None, partial
        if not queued:
            self._outbox.put((job, None))

    def close(self, reason: str, error: Florence2Error) -> None:
        """Reject new jobs with `reason`, and answer all that are open with `error`."""
        with self._lock:
            self.closed = self.closed or reason
            left = list(self._open)
        for job in left:
            self.finish(job, error)

    def stop(self, seconds: float) -> None:
        """End the thread, after it has sent everything; wait at most so long."""
        self._outbox.stop(seconds)

    def reason_to_end(self, job: Job, now: float) -> Florence2Error | None:
        """Return why the job must end now, if there is a reason."""
        if job.gone:
            return Cancelled("the client canceled the request")
        if now >= job.deadline:
            return DeadlineExceeded("the request's time limit passed before its answer was complete")
        if job.times.admitted is None and now >= job.start_by:
            return QueueFull(
                "the request waited as long as this server allows, and its turn did not come; try again later"
            )
        if now - job.times.arrived >= self._max_seconds:
            return DeadlineExceeded(f"the answer took longer than the {self._max_seconds:g} seconds this server allows")
        return None

    def _deliver(self, item: tuple[Job, Outcome | None]) -> None:
        job, outcome = item
        send: Callable[[Any], None] | None = job.answer
        message = outcome
        if outcome is None:
            with self._lock:
                message, job.partial = job.partial, None
                # If it is no longer open, its answer is in the outbox, or was sent.
                send = job.follow if job in self._open else None
        if send and message is not None:
            try:
                send(message)
            except BaseException:  # other jobs need their answers
                log.exception("an answer could not be sent")

    def _check_open_jobs(self) -> None:
        """Poll for cancellation; answer jobs whose time is up, even while the engine thread runs a long step."""
        now = time.monotonic()
        with self._lock:
            jobs = list(self._open)
        for job in jobs:
            if now >= job.next_poll and not job.gone and self._outbox.empty():  # answers go first
                job.next_poll = now + (WAITING_POLL_SECONDS if job.times.admitted is None else POLL_SECONDS)
                try:
                    job.gone = job.cancelled()
                except Exception:  # not knowing costs some steps; a dead sender would cost every answer
                    log.exception("Triton could not say whether a request was canceled")
            error = self.reason_to_end(job, now)
            if error:
                job.gone = True  # so that the engine thread ends it as well, and frees its rows
                self.finish(job, error)
