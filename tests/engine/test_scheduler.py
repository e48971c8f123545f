"""Admission and rows, under random arrivals and departures, without a tensor."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from florence2.config import GenerationOptions
from florence2.engine.beam import Search
from florence2.engine.scheduler import Scheduler
from florence2.engine.sequence import Request, Sequence
from florence2.errors import Cancelled, QueueFull

ROWS = 7


def sequence(beams: int) -> Sequence:
    options = GenerationOptions(10, beams, 0, 1.0, True)
    return Sequence(Request(None, [0, 2], options), search=Search.__new__(Search.__subclasses__()[0]))


class SchedulerMachine(RuleBasedStateMachine):
    """Requests of one to five beams arrive, are admitted, finish or are dropped, in any order."""

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(rows=ROWS, max_waiting=3)
        self.arrived: deque[Sequence] = deque()

    @rule(beams=st.integers(1, 5))
    def arrive(self, beams):
        newcomer = sequence(beams)
        if len(self.scheduler.waiting) == 3:
            with pytest.raises(QueueFull):
                self.scheduler.add(newcomer)
        else:
            self.scheduler.add(newcomer)
            self.arrived.append(newcomer)

    @rule()
    def admit(self):
        admitted = self.scheduler.admit()
        if admitted is not None:
            assert admitted is self.arrived.popleft(), "first come, first served"

    @precondition(lambda self: self.scheduler.live or self.scheduler.waiting)
    @rule(data=st.data())
    def leave(self, data):
        everybody = [*self.scheduler.live, *self.scheduler.waiting]
        leaver = data.draw(st.sampled_from(range(len(everybody))))
        everybody[leaver].finish(Cancelled("gone"))
        assert self.scheduler.retire() == [everybody[leaver]]
        if everybody[leaver] in self.arrived:
            self.arrived.remove(everybody[leaver])

    @invariant()
    def sound(self):
        self.scheduler.check()

    def teardown(self):
        """Whatever happened, everybody who waits is admitted once the live ones leave."""
        while not self.scheduler.idle:
            while self.scheduler.admit():
                pass
            assert self.scheduler.live, "an empty cache has room for the head of the queue"
            for live in self.scheduler.live:
                live.finish(Cancelled("over"))
            self.scheduler.retire()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_nobody_overtakes_the_head_of_the_queue():
    """A small request behind a big one waits, so that the big one cannot starve."""
    scheduler = Scheduler(rows=4, max_waiting=4)
    for beams in (3, 4, 1):
        scheduler.add(sequence(beams))
    assert len(scheduler.admit().rows) == 3
    assert scheduler.admit() is None
