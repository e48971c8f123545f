"""Who is in the batch: the waiting queue, the live sequences and their rows of the cache. Pure Python.

First come, first served: the head of the queue is admitted as soon as enough adjacent rows are free for its beams, and
nobody overtakes it. Live sequences always end (their length is bounded), so the head is admitted in the end.
"""

from __future__ import annotations

from collections import deque

from florence2.engine.sequence import Sequence
from florence2.errors import Florence2Error, QueueFull


class Scheduler:
    """`rows`: hypotheses that can be live together. `max_waiting`: requests beyond those before QueueFull."""

    def __init__(self, rows: int, max_waiting: int) -> None:
        self.rows = rows
        self.max_waiting = max_waiting
        self.waiting: deque[Sequence] = deque()
        self.live: list[Sequence] = []  # ordered by their rows

    def add(self, sequence: Sequence) -> None:
        assert sequence.request.options.num_beams <= self.rows, "Engine.check lets no such request through"
        self.require_room()
        self.waiting.append(sequence)

    def require_room(self, arriving: int = 0) -> None:
        """Raises QueueFull when no more can wait, those included who are on their way to `add`."""
        if len(self.waiting) + arriving >= self.max_waiting:
            raise QueueFull(f"the decoder's queue is full ({self.max_waiting} requests are waiting); try again later")

    def admit(self) -> Sequence | None:
        """Moves the head of the queue into the batch and gives it rows; None if it must wait, or nobody does."""
        if not self.waiting:
            return None
        start = self._free_rows(self.waiting[0].request.options.num_beams)
        if start is None:
            return None
        sequence = self.waiting.popleft()
        sequence.rows = range(start, start + sequence.request.options.num_beams)
        self.live.append(sequence)
        self.live.sort(key=lambda live: live.rows.start)
        return sequence

    def _free_rows(self, count: int) -> int | None:
        """First fit: the start of the first gap of `count` rows between the live sequences."""
        start = 0
        for sequence in self.live:
            if sequence.rows.start - start >= count:
                return start
            start = sequence.rows.stop
        return start if self.rows - start >= count else None

    def retire(self) -> list[Sequence]:
        """Takes out, and returns, everybody who is done, live or still waiting; their rows are free again."""
        done = [sequence for sequence in (*self.live, *self.waiting) if sequence.done]
        if done:
            self.live = [sequence for sequence in self.live if not sequence.done]
            self.waiting = deque(sequence for sequence in self.waiting if not sequence.done)
        return done

    def dismiss_waiting(self, error: Florence2Error) -> list[Sequence]:
        """Ends everybody who waits, and returns all who are done."""
        for sequence in self.waiting:
            if not sequence.done:
                sequence.finish(error)
        return self.retire()

    @property
    def idle(self) -> bool:
        return not self.live and not self.waiting

    def check(self) -> None:
        """The invariants, asserted: live rows lie within the cache and do not overlap; no one is in two places."""
        stop = 0
        for sequence in self.live:
            assert sequence.rows.start >= stop and len(sequence.rows) == sequence.request.options.num_beams
            stop = sequence.rows.stop
        assert stop <= self.rows
        assert len({id(sequence) for sequence in (*self.live, *self.waiting)}) == len(self.live) + len(self.waiting)
        assert len(self.waiting) <= self.max_waiting
