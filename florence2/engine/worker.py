"""The threads around the engine: `submit` queues jobs, an engine thread steps, a sender thread answers.

Every job that `submit` accepts is answered exactly once, whatever happens: a failed step, a dead engine, a deadline, a
canceled request, a stop. It is open until it gets an outcome (`_finish`); the first outcome counts. Only the sender
thread calls the jobs' functions: it sends answers, which blocks for most of a millisecond, and polls for cancellation,
which must never happen after the answer.

A job with `follow` also gets its answer so far, from the same thread and never after the answer. Only the newest one
is kept, so that neither the engine nor memory depends on how fast it is sent.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from florence2.engine import metrics
from florence2.engine.beam import Generation, GreedySearch
from florence2.engine.engine import Engine
from florence2.engine.metrics import Recorder, Sample, Times
from florence2.engine.sequence import Request, Sequence
from florence2.errors import Cancelled, DeadlineExceeded, Florence2Error, InternalError, Unavailable

log = logging.getLogger(__name__)

Outcome = Generation | Florence2Error
POLL_SECONDS = 0.1  # asking Triton whether a request was canceled takes up to 0.13 ms
WAITING_POLL_SECONDS = 1.0  # for waiting requests: there may be hundreds, and they hold no rows
PUBLISH_SECONDS = 1.0
# Between two partial answers to a request. No client reads faster, and each passes through the models after this one.
FOLLOW_SECONDS = 0.02
STOP_SECONDS = 5.0


@dataclass(eq=False)
class Job:
    """A request and the functions that answer it. `cancelled` is never called once the answer is being sent.

    `follow` gets the answer so far of a greedy search, repeatedly, until the answer; it must not block for long.
    """

    request: Request
    answer: Callable[[Outcome], None]
    cancelled: Callable[[], bool] = lambda: False
    deadline: float = float("inf")  # of time.monotonic()
    task: str = metrics.OTHER_TASK
    follow: Callable[[Generation], None] | None = None
    times: Times = field(default_factory=lambda: Times(time.monotonic()))
    next_poll: float = field(default_factory=lambda: time.monotonic() + POLL_SECONDS)
    gone: bool = False  # whether it was canceled; written by the sender, read by the engine thread
    partial: Generation | None = None  # the answer so far, if it has not been sent; then the outbox holds the job
    next_partial: float = 0.0


def publish_nothing(_samples: list[Sample]) -> None:
    """Ignore the samples: the default of Worker."""


class Worker:
    """Run an engine in a thread. `submit` may be called from any thread.

    `max_seconds`: no request takes longer. Triton does not tell an ensemble's models about canceled requests, so this
    limit ends those that no client waits for. `publish` gets what `recorder` counted, from the sender thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_seconds: float = float("inf"),
        publish: Callable[[list[Sample]], None] = publish_nothing,
    ) -> None:
        self.engine = engine
        self.max_seconds = max_seconds
        self.recorder = Recorder()
        self._publish_samples = publish
        self._jobs: dict[Sequence, Job] = {}  # only the engine thread uses it
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None wakes the engine thread to stop it
        # A job without an outcome has a partial answer. None ends the sender.
        self._outbox: queue.SimpleQueue[tuple[Job, Outcome | None] | None] = queue.SimpleQueue()
        # Guards the next two, so that no job is added after the last look at the open ones; and the partial answers.
        self._lock = threading.Lock()
        self._open: set[Job] = set()
        self._closed: str | None = None
        self._sender = threading.Thread(target=self._send_answers, name="florence2-sender", daemon=True)
        self._thread = threading.Thread(target=self._run, name="florence2-engine", daemon=True)
        self._sender.start()
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises InvalidRequest if it cannot be decoded, QueueFull, or Unavailable if no engine runs."""
        self.engine.check(job.request)
        with self._lock:
            if self._closed:
                raise Unavailable(self._closed)
            self.engine.scheduler.require_room(self._inbox.qsize())
            self._inbox.put(job)
            self._open.add(job)

    def stop(self) -> None:
        """Answer all open jobs with Unavailable, even while a step runs, and end the threads."""
        reason = "the decoder is shutting down"
        self._close(reason, Unavailable(reason))
        self._thread.join(STOP_SECONDS)
        self._outbox.put(None)
        self._sender.join(STOP_SECONDS)

    def _close(self, reason: str, error: Florence2Error) -> None:
        """Reject new jobs with `reason`, and answer all that are open with `error`."""
        with self._lock:
            self._closed = self._closed or reason
            left = list(self._open)
        for job in left:
            self._finish(job, error)
        self._inbox.put(None)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Give the job an outcome, unless it has one already."""
        with self._lock:
            if job not in self._open:
                return
            self._open.remove(job)
        self.recorder.finished(job.task, outcome, job.times, time.monotonic())
        self._outbox.put((job, outcome))

    # ---- the engine thread

    def _run(self) -> None:
        try:
            while not self._closed:
                self._receive()
                self._end_late_jobs()
                self._step()
        except BaseException:  # every job needs an answer, even if the thread is being torn down
            reason = "the decoder stopped working and must be restarted; see the server's log"
            self._close(reason, InternalError("the decoder stopped working; see the server's log"))
            log.exception("the engine thread died")

    def _receive(self) -> None:
        """Add all new jobs; wait for the first one when there is nothing else to do."""
        idle = self.engine.scheduler.idle
        while idle or not self._inbox.empty():
            job = self._inbox.get()
            if job is not None:
                self._add(job)
            idle = False

    def _add(self, job: Job) -> None:
        try:
            self._jobs[self.engine.add(job.request)] = job
        except Florence2Error as error:
            self._finish(job, error)
        except Exception:  # out of memory, for example: it concerns this job only
            log.exception("a request could not be added")
            self._finish(job, InternalError("the decoder failed on this request; see the server's log"))

    def _end_late_jobs(self) -> None:
        """End the sequences, waiting or live, whose time is up or that were canceled."""
        now = time.monotonic()
        for sequence, job in self._jobs.items():
            error = self._reason_to_end(job, now)
            if error and not sequence.done:
                sequence.finish(error)

    def _reason_to_end(self, job: Job, now: float) -> Florence2Error | None:
        if job.gone:
            return Cancelled("the client canceled the request")
        if now >= job.deadline:
            return DeadlineExceeded("the request's time limit passed before its answer was complete")
        if now - job.times.arrived >= self.max_seconds:
            return DeadlineExceeded(f"the answer took longer than the {self.max_seconds:g} seconds this server allows")
        return None

    def _step(self) -> None:
        started = time.monotonic()
        failed = False
        try:
            done = self.engine.step()
        except Exception:  # out of memory, for example: answer the batch and continue with the waiting requests
            log.exception("a decoder step failed")
            failed = True
            # With no live request, a waiting one is the cause, and the next step would fail again: dismiss them all.
            done = self.engine.fail_live() or self.engine.scheduler.dismiss_waiting(
                InternalError("the decoder failed on this request; see the server's log")
            )
        now = time.monotonic()
        self.recorder.stepped(now - started, failed=failed)
        self._note_times((*self.engine.scheduler.live, *done), started, now)
        for sequence in done:
            assert sequence.outcome is not None
            self._finish(self._jobs.pop(sequence), sequence.outcome)
        self._note_partial_answers(self.engine.scheduler.live, now)

    def _note_partial_answers(self, sequences: Iterable[Sequence], now: float) -> None:
        for sequence in sequences:
            job, search = self._jobs[sequence], sequence.search
            if job.follow and now >= job.next_partial and isinstance(search, GreedySearch) and search.length > 1:
                job.next_partial = now + FOLLOW_SECONDS
                with self._lock:
                    queued, job.partial = job.partial is not None, search.so_far()
                if not queued:
                    self._outbox.put((job, None))

    def _note_times(self, sequences: Iterable[Sequence], started: float, now: float) -> None:
        for sequence in sequences:
            times = self._jobs[sequence].times
            if times.admitted is None and sequence.rows:
                times.admitted = started
            has_token = sequence.search.length > 1  # it counts the decoder's start token
            if times.first_token is None and (has_token or isinstance(sequence.outcome, Generation)):
                times.first_token = now

    # ---- the sender thread

    def _send_answers(self) -> None:
        publish_at = 0.0
        while (item := self._next_answer()) is not None:
            if item:
                self._deliver(*item)
            del item  # Triton's request objects must go at once
            self._check_open_jobs()
            if time.monotonic() >= publish_at:
                self._publish()
                publish_at = time.monotonic() + PUBLISH_SECONDS
        self._publish()

    def _deliver(self, job: Job, outcome: Outcome | None) -> None:
        if outcome is not None:
            _send(job.answer, outcome)
            return
        with self._lock:
            partial, job.partial = job.partial, None
            superseded = job not in self._open  # its answer is in the outbox, or was sent
        if partial is not None and job.follow and not superseded:
            _send(job.follow, partial)

    def _next_answer(self) -> tuple[Job, Outcome | None] | tuple[()] | None:
        """Return the next item of the outbox, or () after a while, so that polling and metrics go on."""
        try:
            return self._outbox.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return ()

    def _check_open_jobs(self) -> None:
        """Poll for cancellation; answer jobs whose time is up, even while the engine thread runs a long step."""
        now = time.monotonic()
        with self._lock:
            jobs = list(self._open)
        for job in jobs:
            if now >= job.next_poll and self._outbox.empty():  # answers go first
                job.next_poll = now + (WAITING_POLL_SECONDS if job.times.admitted is None else POLL_SECONDS)
                job.gone = job.gone or _has_gone(job)
            error = self._reason_to_end(job, now)
            if error:  # the engine thread finds the same reason and frees its rows
                self._finish(job, error)

    def _publish(self) -> None:
        try:
            self._measure()
            self._publish_samples(self.recorder.take())
        except Exception:  # answers matter more
            log.exception("the metrics could not be published")

    def _measure(self) -> None:
        scheduler, gauge = self.engine.scheduler, self.recorder.gauge
        running = self._thread.is_alive()  # if not, the jobs left in its batch have been answered
        live, row_bytes = list(scheduler.live) if running else [], self.engine.backend.bytes_per_row
        rows = sum(len(sequence.rows) for sequence in live)
        gauge(metrics.UP, float(running))
        gauge(metrics.WAITING, len(scheduler.waiting) + self._inbox.qsize() if running else 0)
        gauge(metrics.LIVE, len(live))
        gauge(metrics.LIVE_ROWS, rows)
        gauge(metrics.ROWS, scheduler.rows)
        gauge(metrics.KV_BYTES, scheduler.rows * row_bytes, "reserved")
        gauge(metrics.KV_BYTES, (rows + len(live)) * row_bytes // 2, "used")  # a row, or a slot, is half of it


def _send(send: Callable[[Any], None], message: Outcome) -> None:
    try:
        send(message)
    except BaseException:  # other jobs need their answers
        log.exception("an answer could not be sent")


def _has_gone(job: Job) -> bool:
    try:
        return job.cancelled()
    except Exception:  # not knowing costs some steps; a dead sender would cost every answer
        log.exception("Triton could not say whether a request was canceled")
        return False
