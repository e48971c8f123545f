"""Prefill between the steps: which admitted requests are encoded next, and what happens to those that cannot be.

Pure Python, like the scheduler.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator

from florence2.engine.backend import Backend
from florence2.engine.bart import Prefill
from florence2.engine.sequence import Sequence
from florence2.errors import InternalError, InvalidRequest

log = logging.getLogger(__name__)


class PrefillQueue:
    """The admitted requests that cannot be decoded yet. The backend takes as many at once as it is made for.

    An error concerns one request: if a batch fails, each of its requests is tried on its own.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiting: deque[Sequence] = deque()
        self._suspects: deque[Sequence] = deque()  # of a batch that failed
        self._batch: list[Sequence] = []
        self._pieces: Generator[None, None, list[bool]] | None = None  # what is left of the batch

    def add(self, sequence: Sequence) -> None:
        """Append a request that has its slot."""
        self._waiting.append(sequence)

    def advance(self) -> bool:
        """Compute the next piece, in order of admission. Return False if there is none."""
        if all(sequence.done for sequence in self._batch):  # also those that were canceled meanwhile
            self._batch, self._pieces = self._next_batch(), None
        if not self._batch:
            return False
        try:
            if self._pieces is None:
                self._pieces = self._backend.prefill(
                    [Prefill(each.request.image_features, each.request.prompt_ids, each.slot) for each in self._batch]
                )
            next(self._pieces)
        except StopIteration as end:
            self._finish(end.value)
        except Exception:
            log.exception("prefill of %d requests failed", len(self._batch))
            self._fail()
        return True

    def _next_batch(self) -> list[Sequence]:
        """Take one suspect, or as many of the others as the backend takes, and leave out what has ended meanwhile."""
        self._suspects = deque(sequence for sequence in self._suspects if not sequence.done)
        if self._suspects:
            return [self._suspects.popleft()]
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.done)
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._backend.prefill_batch))]

    def _finish(self, ready: list[bool]) -> None:
        for sequence, finite in zip(self._batch, ready, strict=True):
            if finite:
                sequence.prefilled = True
            elif not sequence.done:
                sequence.finish(InvalidRequest("IMAGE_FEATURES lead to numbers out of the model's range"))
        self._batch = []

    def _fail(self) -> None:
        batch, self._batch = self._batch, []
        if len(batch) > 1:
            self._suspects.extend(batch)
        elif not batch[0].done:
            batch[0].finish(InternalError("the text encoder failed on this request; see the server's log"))
