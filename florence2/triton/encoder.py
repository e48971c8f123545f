"""The vision encoder behind a cache: equal images are encoded once, however many requests have them, and when.

A request for an image whose features are kept is answered at once, even while other images are being encoded. One for
an image on its way waits for that run. Only a new image costs a run, in this module's thread; another thread responds.
Knows no Triton: `onnxruntime_backend` connects it with one (docs/adr/0008).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from florence2.engine import metrics
from florence2.engine.metrics import Recorder, Sample
from florence2.engine.outbox import Outbox
from florence2.errors import Florence2Error, InternalError, QueueFull, Unavailable
from florence2.triton.cache import Cache
from florence2.triton.onnx_session import Arrays, Session

log = logging.getLogger(__name__)

BUSY = "the vision encoder is busy with requests of the ensemble; send images there, or try again later"
STOP_SECONDS = 5.0
Outcome = Arrays | Florence2Error


@dataclass(eq=False)
class Run:
    """An image, or a client's batch of them, that waits for the encoder or is being encoded."""

    key: Hashable
    inputs: Arrays
    images: int
    allowed: Callable[[int], bool]
    waiting: list[Callable[[Outcome], None]]  # the requests that this run answers


class Encoder:
    """Run a session for each new key, in order of arrival. All methods may be called from any thread.

    `batch`: as many images form one run. `publish` gets the metrics once a second.
    """

    def __init__(
        self,
        session: Session,
        batch: int,
        cache: Cache[Arrays],
        publish: Callable[[list[Sample]], None] = lambda _samples: None,
    ) -> None:
        self._session, self._batch, self._cache, self._publish_samples = session, batch, cache, publish
        self._changed = threading.Condition()  # guards the next four, and keeps the cache in step with them
        self._queue: deque[Run] = deque()
        self._runs: dict[Hashable, Run] = {}  # in the queue or being encoded
        self._closed = ""  # the reason, once there are no more runs
        self._evictions = 0  # as published
        self._recorder = Recorder()
        for metric in metrics.ENCODER_METRICS:
            if metric.kind is metrics.Kind.COUNTER:
                self._recorder.count(metric, 0)  # so that it is published from the start
        # Responding takes most of a millisecond, so another thread does it.
        self._outbox: Outbox[tuple[Callable[[Outcome], None], Outcome]] = Outbox(self._deliver, self._publish)
        self._worker = threading.Thread(target=self._work, name="florence2-encoder", daemon=True)
        self._worker.start()
        self._outbox.start()

    def submit(
        self,
        key: Hashable,
        inputs: Arrays,
        answer: Callable[[Outcome], None],
        images: int = 1,
        allowed: Callable[[int], bool] = lambda _waiting: True,
    ) -> Arrays | None:
        """Return the outputs if they are kept. If not, `answer` will get them, or an error, from another thread.

        Equal keys stand for equal inputs. `allowed` says whether the inputs may have a run of their own, given how many
        wait for one: now, and again with 0 when it is their turn. Raises QueueFull if they may not, Unavailable after
        `stop`.
        """
        with self._changed:
            if (kept := self._cache.get(key)) is not None:
                self._recorder.count(metrics.ENCODER_HITS, images)
                return kept
            if run := self._runs.get(key):
                self._recorder.count(metrics.ENCODER_JOINS, images)
                run.waiting.append(answer)
                return None
            if self._closed:
                raise Unavailable(self._closed)
            if not allowed(len(self._queue)):
                raise QueueFull(BUSY)
            self._runs[key] = run = Run(key, inputs, images, allowed, [answer])
            self._queue.append(run)
            self._changed.notify()
            return None

    def stop(self) -> None:
        """Answer what waits with Unavailable, let the current run end, and end the threads."""
        reason = "the vision encoder is shutting down"
        self._close(reason, list(self._queue), Unavailable(reason))
        self._worker.join(STOP_SECONDS)
        self._close(reason, list(self._runs.values()), Unavailable(reason))
        self._outbox.stop(STOP_SECONDS)

    def _close(self, reason: str, left: list[Run], error: Florence2Error) -> None:
        with self._changed:
            self._closed = self._closed or reason
            for run in left:
                self._end(run, error)
            self._changed.notify()

    def _end(self, run: Run, outcome: Outcome) -> None:
        """Answer the requests that wait for a run, unless they were answered. Call it with the lock."""
        if self._runs.get(run.key) is run:
            del self._runs[run.key]
            for answer in run.waiting:
                self._outbox.put((answer, outcome))

    # ---- the thread that encodes

    def _work(self) -> None:
        try:
            while runs := self._next():
                self._encode(runs)
                del runs  # Triton's request objects must go at once
        except BaseException:  # every request needs an answer, even if the thread is being torn down
            log.exception("the encoder's thread died")
            reason = "the vision encoder stopped working and must be restarted; see the server's log"
            self._close(reason, list(self._runs.values()), InternalError(reason))

    def _next(self) -> list[Run]:
        """Wait for images, and return those of the next run; none after `stop`."""
        with self._changed:
            chosen: list[Run] = []
            while not chosen:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    break
                room = self._batch
                while self._queue and (self._queue[0].images <= room or not chosen):
                    run = self._queue.popleft()
                    # Asked with the lock, so that no request joins a run that is being refused.
                    if run.allowed(0):
                        chosen.append(run)
                        room -= run.images
                    else:
                        self._end(run, QueueFull(BUSY))
            return chosen

    def _encode(self, runs: list[Run]) -> None:
        """Encode several images as one batch; if that fails, each by itself."""
        started = time.monotonic()
        outcomes: list[Outcome]
        try:
            outcomes = list(self._outputs(runs))
        except Exception as error:
            if len(runs) > 1:
                log.warning("a batch of %d failed, so each request runs by itself: %s", len(runs), error)
                for run in runs:
                    self._encode([run])
                return
            log.exception("the vision encoder failed")
            outcomes = [InternalError("the vision encoder failed on this request; see the server's log")]
            self._recorder.count(metrics.ENCODER_FAILURES, runs[0].images)
        self._recorder.count(metrics.ENCODER_RUNS, sum(run.images for run in runs))
        self._recorder.count(metrics.ENCODER_SECONDS, time.monotonic() - started)
        with self._changed:
            for run, outcome in zip(runs, outcomes, strict=True):
                if not isinstance(outcome, Florence2Error):
                    self._cache.put(run.key, outcome, sum(array.nbytes for array in outcome.values()))
                self._end(run, outcome)

    def _outputs(self, runs: list[Run]) -> Iterator[Arrays]:
        if len(runs) == 1:
            yield self._session.run(runs[0].inputs)
            return
        names = runs[0].inputs
        joined = self._session.run({name: np.concatenate([run.inputs[name] for run in runs]) for name in names})
        start = 0
        for run in runs:
            rows = slice(start, start := start + run.images)
            # Copies, so that the cache does not keep whole batches alive.
            yield {name: output[rows].copy() for name, output in joined.items()}

    # ---- the thread that responds

    def _deliver(self, item: tuple[Callable[[Outcome], None], Outcome]) -> None:
        answer, outcome = item
        try:
            answer(outcome)
        except BaseException:  # other requests need their answers
            log.exception("a response could not be sent")

    def _publish(self) -> None:
        try:
            gauge, cache = self._recorder.gauge, self._cache
            gauge(metrics.ENCODER_WAITING, sum(run.images for run in list(self._queue)))
            gauge(metrics.ENCODER_CACHE_BYTES, cache.bytes)
            gauge(metrics.ENCODER_CACHE_ENTRIES, len(cache))
            evictions, self._evictions = cache.evictions - self._evictions, cache.evictions
            self._recorder.count(metrics.ENCODER_EVICTIONS, evictions)
            self._publish_samples(self._recorder.take())
        except Exception:  # answers matter more
            log.exception("the metrics could not be published")
