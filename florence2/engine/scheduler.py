"""What is in the batch: the waiting queue, the live sequences, and their rows and slots. Pure Python.

First come, first served, with a reservation. A request needs as many adjacent rows as it has beams, and any slot. While
the head of the queue waits for its rows, requests behind it may take others: that keeps rows busy and cannot delay the
head. Live sequences always end (their length is bounded), so the head's rows become free, whatever else arrives.
docs/adr/0002-admission-order.md has the reasons and figures.
"""

from __future__ import annotations

from collections import deque

from florence2.engine.sequence import Sequence
from florence2.errors import Florence2Error, QueueFull


class Scheduler:
    """Admit requests to a batch of at most `rows` hypotheses; at most `max_waiting` further requests wait."""

    def __init__(self, rows: int, max_waiting: int) -> None:
        self.rows = rows
        self.max_waiting = max_waiting
        self.waiting: deque[Sequence] = deque()
        self.live: list[Sequence] = []  # ordered by their rows
        self._reserved: tuple[Sequence, range] | None = None  # for the head of the queue, when it does not fit

    def add(self, sequence: Sequence) -> None:
        """Append to the queue. Raises QueueFull."""
        assert _beams(sequence) <= self.rows, "Engine.check rejects such requests"
        self.require_room()
        self.waiting.append(sequence)

    def require_room(self, arriving: int = 0) -> None:
        """Raise QueueFull if no more can wait, counting `arriving` requests that are on their way to `add`."""
        if len(self.waiting) + arriving >= self.max_waiting:
            raise QueueFull(f"the decoder's queue is full ({self.max_waiting} requests are waiting); try again later")

    def admit(self) -> Sequence | None:
        """Move one sequence, the head if it fits, from the queue into the batch; return None if all must wait."""
        if not self.waiting:
            return None
        head = self.waiting[0]
        start = _first_fit(self._gaps(range(0)), _beams(head))
        if start is not None:
            return self._make_live(head, start)
        gaps = self._gaps(self._reserve_for(head))
        for sequence in self.waiting if gaps else ():  # the head itself does not fit
            start = _first_fit(gaps, _beams(sequence))
            if start is not None:
                return self._make_live(sequence, start)
        return None

    def _reserve_for(self, head: Sequence) -> range:
        """Return the rows that the head waits for; they stay the same, so that it waits for their occupants only."""
        if self._reserved is None or self._reserved[0] is not head:
            self._reserved = (head, self._window_of_the_oldest(_beams(head)))
        return self._reserved[1]

    def _window_of_the_oldest(self, count: int) -> range:
        """Return `count` adjacent rows whose youngest occupant has decoded most: they may be the first to be free."""
        age = [float("inf")] * self.rows
        for sequence in self.live:
            for row in sequence.rows:
                age[row] = sequence.search.length
        start = max(range(self.rows - count + 1), key=lambda first: min(age[first : first + count]))
        return range(start, start + count)

    def _gaps(self, reserved: range) -> list[range]:
        """Return the maximal ranges of rows that are neither live nor reserved."""
        gaps, start = [], 0
        taken = sorted([sequence.rows for sequence in self.live] + [reserved], key=lambda rows: rows.start)
        for rows in (*taken, range(self.rows, self.rows)):
            if rows.start > start:
                gaps.append(range(start, rows.start))
            start = max(start, rows.stop)
        return gaps

    def _make_live(self, sequence: Sequence, start: int) -> Sequence:
        self.waiting.remove(sequence)
        sequence.rows = range(start, start + _beams(sequence))
        taken = {live.slot for live in self.live}
        sequence.slot = next(slot for slot in range(self.rows) if slot not in taken)  # live slots stay close together
        self.live.append(sequence)
        self.live.sort(key=lambda live: live.rows.start)
        return sequence

    def retire(self) -> list[Sequence]:
        """Remove and return all sequences that are done, live or waiting; their rows and slots are free again."""
        done = [sequence for sequence in (*self.live, *self.waiting) if sequence.done]
        if done:
            self.live = [sequence for sequence in self.live if not sequence.done]
            self.waiting = deque(sequence for sequence in self.waiting if not sequence.done)
            if self._reserved and self._reserved[0] not in self.waiting:
                self._reserved = None  # or it would keep the request's features in memory
        return done

    def dismiss_waiting(self, error: Florence2Error) -> list[Sequence]:
        """End all waiting sequences with an error, and return all that are done."""
        for sequence in self.waiting:
            if not sequence.done:
                sequence.finish(error)
        return self.retire()

    @property
    def idle(self) -> bool:
        return not self.live and not self.waiting

    def check(self) -> None:
        """Assert the invariants: live rows and slots exist and do not overlap; no sequence is in two places."""
        stop = 0
        for sequence in self.live:
            assert sequence.rows.start >= stop and len(sequence.rows) == _beams(sequence)
            stop = sequence.rows.stop
        assert stop <= self.rows
        slots = {sequence.slot for sequence in self.live}
        assert len(slots) == len(self.live) and slots <= set(range(self.rows))
        assert len({id(sequence) for sequence in (*self.live, *self.waiting)}) == len(self.live) + len(self.waiting)
        assert len(self.waiting) <= self.max_waiting


def _beams(sequence: Sequence) -> int:
    return sequence.request.options.num_beams


def _first_fit(gaps: list[range], count: int) -> int | None:
    return next((gap.start for gap in gaps if len(gap) >= count), None)
