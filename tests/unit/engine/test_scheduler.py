"""Admission, rows and slots, under random arrivals and departures, without a tensor."""

from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from florence2.contract import GenerationOptions
from florence2.engine.scheduler import Scheduler
from florence2.engine.sequence import Request, Sequence
from florence2.errors import Cancelled, QueueFull

ROWS = 7


def sequence(beams: int) -> Sequence:
    options = GenerationOptions(10, beams, 0, 1.0, True)
    return Sequence(Request(None, [0, 2], options), SimpleNamespace(length=1))


class SchedulerMachine(RuleBasedStateMachine):
    """Requests of one to seven beams arrive, are admitted, decode, finish or are dropped, in any order."""

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(rows=ROWS, max_waiting=5)
        self.head: Sequence | None = None  # the head of the queue since it was refused rows
        self.in_its_way: set[Sequence] = set()  # what was live then

    @rule(beams=st.integers(1, ROWS))
    def arrive(self, beams):
        newcomer = sequence(beams)
        if len(self.scheduler.waiting) == 5:
            with pytest.raises(QueueFull):
                self.scheduler.add(newcomer)
        else:
            self.scheduler.add(newcomer)

    @rule()
    def admit(self):
        queue = list(self.scheduler.waiting)
        admitted = self.scheduler.admit()
        if admitted is None:
            assert not queue or self.scheduler.live, "an empty cache has room for the head"
        else:
            passed = queue[: queue.index(admitted)]
            assert all(len(admitted.rows) < waiting.request.options.num_beams for waiting in passed), (
                "a smaller one passes only"
            )
        if queue and admitted is not queue[0] and self.head is not queue[0]:
            self.head, self.in_its_way = queue[0], set(self.scheduler.live) - {admitted}

    @rule()
    def decode(self):
        for live in self.scheduler.live:
            live.search.length += 1

    @precondition(lambda self: self.scheduler.live or self.scheduler.waiting)
    @rule(data=st.data())
    def leave(self, data):
        present = [*self.scheduler.live, *self.scheduler.waiting]
        leaver = data.draw(st.sampled_from(present))
        leaver.finish(Cancelled("gone"))
        assert self.scheduler.retire() == [leaver]

    @precondition(lambda self: self.head in self.scheduler.waiting)
    @rule()
    def those_in_its_way_end(self):
        """Then the head fits at once, whatever has been admitted meanwhile: that bounds its wait."""
        for live in self.in_its_way & set(self.scheduler.live):
            live.finish(Cancelled("over"))
        self.scheduler.retire()
        assert self.scheduler.admit() is self.head

    @invariant()
    def sound(self):
        self.scheduler.check()

    def teardown(self):
        """Whatever happened, all waiting requests are admitted once the live ones leave."""
        while not self.scheduler.idle:
            while self.scheduler.admit():
                pass
            assert self.scheduler.live, "an empty cache has room for the head of the queue"
            for live in self.scheduler.live:
                live.finish(Cancelled("over"))
            self.scheduler.retire()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def admitted(scheduler: Scheduler, *beams: int) -> list[Sequence]:
    """Return new requests with so many beams, which must all fit."""
    for count in beams:
        scheduler.add(sequence(count))
    return [scheduler.admit() for _ in beams]


def test_the_head_keeps_its_place_against_a_flood_of_small_requests():
    """It needs all four rows and one is free: that stays free, or small ones could follow each other forever."""
    scheduler = Scheduler(rows=4, max_waiting=4)
    admitted(scheduler, 3)
    for beams in (4, 1):
        scheduler.add(sequence(beams))
    assert scheduler.admit() is None


def test_rows_that_the_head_cannot_use_are_not_left_idle():
    """Six of seven rows are busy and three needed: the head waits for three of those, a small one has the seventh."""
    scheduler = Scheduler(rows=7, max_waiting=4)
    admitted(scheduler, 3, 3)
    scheduler.add(sequence(3))
    scheduler.add(sequence(1))
    assert scheduler.admit().rows == range(6, 7)
    assert scheduler.admit() is None


def test_the_head_waits_where_others_have_been_at_it_the_longest():
    """Which request ends first is unknown; the one that began first is the better guess."""
    scheduler = Scheduler(rows=7, max_waiting=4)
    young, old = admitted(scheduler, 3, 3)
    young.search.length, old.search.length = 2, 90
    scheduler.add(sequence(4))
    scheduler.add(sequence(1))
    assert scheduler.admit() is None, "the head waits for the old one's rows and the free one next to them"
    old.finish(Cancelled("over"))
    scheduler.retire()
    assert scheduler.admit().rows == range(3, 7)


def test_a_head_that_gives_up_leaves_its_rows_to_the_next():
    """A reservation ends with the request it was made for."""
    scheduler = Scheduler(rows=4, max_waiting=4)
    admitted(scheduler, 3)
    for beams in (4, 1):
        scheduler.add(sequence(beams))
    assert scheduler.admit() is None
    scheduler.waiting[0].finish(Cancelled("gone"))
    scheduler.retire()
    assert scheduler._reserved is None
    assert len(scheduler.admit().rows) == 1


def test_all_waiting_requests_can_be_dismissed():
    """After a failed step with no live request: live requests stay, the queue is empty."""
    scheduler = Scheduler(rows=2, max_waiting=4)
    [live] = admitted(scheduler, 2)
    for _ in range(3):
        scheduler.add(sequence(1))
    error = Cancelled("sorry")
    assert [gone.outcome for gone in scheduler.dismiss_waiting(error)] == [error] * 3
    assert scheduler.live == [live] and not scheduler.waiting


def test_a_reservation_does_not_move():
    """Or the head could wait for new requests each time. Here other rows look better a moment later."""
    scheduler = Scheduler(rows=7, max_waiting=4)
    first, second = admitted(scheduler, 3, 3)
    scheduler.add(sequence(4))
    assert scheduler.admit() is None, "it waits for the first three rows and the one after them"
    first.search.length, second.search.length = 2, 90
    scheduler.add(sequence(1))
    assert scheduler.admit().rows == range(6, 7)


def test_the_lowest_free_slot_is_taken():
    """Live slots stay close together, whatever rows their requests have."""
    scheduler = Scheduler(rows=7, max_waiting=4)
    first, second, third = admitted(scheduler, 2, 2, 1)
    assert [live.slot for live in (first, second, third)] == [0, 1, 2]
    first.finish(Cancelled("over"))
    scheduler.retire()
    [late] = admitted(scheduler, 2)
    assert late.slot == 0
