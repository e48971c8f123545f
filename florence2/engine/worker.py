"""The thread around the engine: `submit` queues jobs, the engine thread steps, and a `Sender` answers.

Every job that `submit` accepts is answered exactly once, whatever happens: a failed step, a dead engine, a deadline, a
canceled request, a stop.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable

from florence2.engine import metrics
from florence2.engine.backend import DeviceLost
from florence2.engine.engine import Engine
from florence2.engine.metrics import Recorder, Sample
from florence2.engine.sender import Job, Sender
from florence2.engine.sequence import Sequence
from florence2.errors import Florence2Error, InternalError, Unavailable

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0


def publish_nothing(_samples: list[Sample]) -> None:
    """Ignore the samples: the default of Worker."""


class Worker:
    """Run an engine in a thread. `submit` may be called from any thread.

    `max_seconds`: no request takes longer. Triton does not tell an ensemble's models about canceled requests, so this
    limit ends those that no client waits for. `publish` gets what `recorder` counted, from the sender's thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_seconds: float = float("inf"),
        publish: Callable[[list[Sample]], None] = publish_nothing,
    ) -> None:
        self.engine = engine
        self.recorder = Recorder()
        self._publish_samples = publish
        self._jobs: dict[Sequence, Job] = {}  # only the engine thread uses it
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None wakes the engine thread to stop it
        self._submitting = threading.Lock()  # so that the queue's limit holds
        self._thread = threading.Thread(target=self._run, name="florence2-engine", daemon=True)
        self.sender = Sender(self.recorder, max_seconds, self._publish)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises InvalidRequest if it cannot be decoded, QueueFull, or Unavailable if no engine runs."""
        self.engine.check(job.request)
        with self._submitting:
            self.engine.scheduler.require_room(self._inbox.qsize())
            self.sender.accept(job)
            self._inbox.put(job)

    def stop(self) -> None:
        """Answer all open jobs with Unavailable, even while a step runs, and end the threads."""
        reason = "the decoder is shutting down"
        self.sender.close(reason, Unavailable(reason))
        self._inbox.put(None)
        self._thread.join(STOP_SECONDS)
        self.sender.stop(STOP_SECONDS)

    def _run(self) -> None:
        try:
            while not self.sender.closed:
                self._receive()
                self._end_late_jobs()
                self._step()
        except BaseException as error:  # every job needs an answer, even if the thread is being torn down
            self.sender.close(
                "the decoder stopped working and must be restarted; see the server's log",
                InternalError("the decoder stopped working; see the server's log"),
            )
            log.exception("the engine thread died")
            if isinstance(error, DeviceLost):  # a new process may find the device well again; a server restarts it
                self.sender.stop(STOP_SECONDS)
                os._exit(1)

    def _receive(self) -> None:
        """Add all new jobs; wait for the first one when there is nothing else to do."""
        idle = self.engine.scheduler.idle
        while idle or not self._inbox.empty():
            job = self._inbox.get()
            idle = False
            if job is None:
                continue
            try:
                self._jobs[self.engine.add(job.request)] = job
            except Florence2Error as error:
                self.sender.finish(job, error)
            except Exception:  # out of memory, for example: it concerns this job only
                log.exception("a request could not be added")
                self.sender.finish(job, InternalError("the decoder failed on this request; see the server's log"))

    def _end_late_jobs(self) -> None:
        """End the sequences, waiting or live, whose time is up or that were canceled."""
        now = time.monotonic()
        for sequence, job in self._jobs.items():
            error = self.sender.reason_to_end(job, now)
            if error and not sequence.done:
                sequence.finish(error)

    def _step(self) -> None:
        started = time.monotonic()
        failed = False
        try:
            done = self.engine.step()
        except Exception:  # out of memory, for example: answer the batch and continue with the waiting requests
            log.exception("a decoder step failed")
            failed = True
            self.engine.backend.check_device()
            # With no live request, a waiting one is the cause, and the next step would fail again: dismiss them all.
            done = self.engine.fail_live() or self.engine.scheduler.dismiss_waiting(
                InternalError("the decoder failed on this request; see the server's log")
            )
        now = time.monotonic()
        self.recorder.stepped(now - started, failed=failed)
        for sequence in done:
            assert sequence.outcome is not None
            job = self._jobs.pop(sequence)
            job.note_times(sequence, started, now)
            self.sender.finish(job, sequence.outcome)
        for sequence in self.engine.scheduler.live:
            job = self._jobs[sequence]
            job.note_times(sequence, started, now)
            if job.follow and now >= job.next_partial and sequence.search.can_be_followed:
                self.sender.follow(job, self.engine.searches.so_far(sequence.search), now)

    def _publish(self) -> None:
        try:
            scheduler, gauge = self.engine.scheduler, self.recorder.gauge
            running = self._thread.is_alive()  # if not, the jobs left in its batch have been answered
            live, size = list(scheduler.live) if running else [], self.engine.backend.cache_bytes
            rows = sum(len(sequence.rows) for sequence in live)
            gauge(metrics.UP, float(running))
            gauge(metrics.WAITING, len(scheduler.waiting) + self._inbox.qsize() if running else 0)
            gauge(metrics.LIVE, len(live))
            gauge(metrics.LIVE_ROWS, rows)
            gauge(metrics.ROWS, scheduler.rows)
            gauge(metrics.KV_BYTES, scheduler.rows * (size.row + size.slot), "reserved")
            gauge(metrics.KV_BYTES, rows * size.row + len(live) * size.slot, "used")
            self._publish_samples(self.recorder.take())
        except Exception:  # answers matter more
            log.exception("the metrics could not be published")
