"""Tickets bound the requests inside the server, whichever process takes, brings or loses them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from florence2.errors import QueueFull
from florence2.triton import admission
from florence2.triton.admission import MOST_WITHOUT_TICKET, NO_TICKET, Tickets, fingerprint
from florence2.triton.book import FIRST_LIFE, LONGEST_LIFE, LONGEST_PACE, SHORTEST_LIFE
from tests.unit.triton.conftest import Clock


@pytest.fixture
def three(tmp_path: Path, clock: Clock) -> Tickets:
    return Tickets(tmp_path / "tickets", 3, clock)


@pytest.fixture
def decoder(tmp_path: Path, clock: Clock, three: Tickets) -> Tickets:
    """Return tickets in the same file, opened by a process that sets no limit."""
    return Tickets(tmp_path / "tickets", clock=clock)


def refused(of: Tickets) -> bool:
    try:
        of.take()
    except QueueFull:
        return True
    return False


def test_one_too_many_is_refused_until_one_leaves(three, decoder):
    """Requests on their way count, as do those that the decoder holds."""
    numbers = [three.take() for _ in range(3)]
    assert decoder.enter(numbers[0]).age == 0
    with pytest.raises(QueueFull, match=r"queue is full \(3 requests are in it\); try again later"):
        three.take()
    decoder.give_back(numbers[0])
    assert three.take() not in numbers
    assert refused(three) and three.look().refused_full == 2


def test_a_request_brings_its_age(three, decoder, clock):
    """So that its time limit counts from its ticket."""
    number = three.take()
    clock.now += 7.5
    assert decoder.enter(number).age == 7.5


def test_a_request_without_a_valid_ticket_gets_one_in_the_decoder(three, decoder):
    """Left out, forged, or replaced in the meantime: it counts as inside, so that no client goes round the limit."""
    number = three.take()
    decoder.give_back(number + 1)
    entries = [decoder.enter(NO_TICKET), decoder.enter(number + 1)]
    assert len({number, NO_TICKET, number + 1, *(entry.ticket for entry in entries)}) == 5
    assert [entry.age for entry in entries] == [0, 0]
    with pytest.raises(QueueFull):
        decoder.enter(NO_TICKET)
    decoder.give_back(entries[0].ticket)
    assert not refused(three)


def test_a_lost_ticket_is_replaced(three, decoder, clock):
    """One that was lost between the two processes; a ticket that the decoder holds is never replaced."""
    kept, *_lost = (three.take() for _ in range(3))
    decoder.enter(kept)
    clock.now += SHORTEST_LIFE + 100  # the slowest way that was seen is 0 seconds
    assert not refused(three)
    assert len(three.look().tickets) == 3 and kept in [ticket.number for ticket in three.look().tickets]


def test_no_ticket_is_lost_before_one_has_arrived(three, clock):
    """The encoder may take long for its first image."""
    for _ in range(3):
        three.take()
    clock.now += FIRST_LIFE - 1
    assert refused(three)
    clock.now += 1
    assert not refused(three)


def test_the_life_of_a_ticket_follows_the_encoder(three, decoder, clock):
    """Where the way took 100 seconds, no ticket is overdue after 80. A slow way is forgotten in time."""
    slow = three.take()
    clock.now += 100
    decoder.enter(slow)
    decoder.give_back(slow)
    numbers = [three.take() for _ in range(3)]
    clock.now += 80
    assert refused(three)
    for number in numbers:
        decoder.enter(number)
        decoder.give_back(number)
    clock.now += 3600
    three.take()
    clock.now += SHORTEST_LIFE
    assert three.look().working(clock.now) == 0


def test_a_ticket_that_is_brought_late_on_purpose_keeps_none_out_for_long(three, decoder, clock):
    """An hour on the way says nothing about the encoder."""
    late = three.take()
    clock.now += 3600
    decoder.give_back(decoder.enter(late).ticket)
    for _ in range(3):
        three.take()
    clock.now += LONGEST_LIFE
    assert not refused(three)


def test_a_hanging_encoder_gets_fewer_and_fewer(three, clock):
    """A ticket that is replaced in vain slows the next one, so few images pile up before an encoder that hangs."""
    let_in = 0
    for _ in range(3600):
        let_in += not refused(three)
        clock.now += 1
    assert let_in <= 3 + 6 + 3600 / LONGEST_PACE


def test_abandoned_tickets_cost_others_seconds(tmp_path, clock):
    """A client takes 128 tickets at once and brings none; the first request after that frees them all."""
    of = Tickets(tmp_path / "tickets", 128, clock, max_wait=60)
    way = 0.2

    def ask() -> bool:
        if refused(of):
            return False
        number = of.look().tickets[-1].number
        clock.now += way
        of.enter(number)
        of.give_back(number, answered=True)
        return True

    assert ask()
    for _ in range(10):
        while not refused(of):
            pass
        flooded = clock.now
        while not ask():
            clock.now += 0.1
        assert clock.now - flooded <= SHORTEST_LIFE + way + 0.2
        assert not of.look().tickets


def test_a_busy_server_is_never_overrun(tmp_path, clock):
    """With any encoder that is first come, first served, and with a cache that lets some requests overtake others."""
    chance = random.Random(0)
    for seconds_each in (0.05, 2.0, 9.0):
        limit = 20
        of = Tickets(tmp_path / str(seconds_each), limit, clock)
        queue: list[int] = []
        done = clock.now
        for _ in range(1000):
            clock.now += seconds_each * chance.expovariate(3)
            while queue and done <= clock.now:
                number = queue.pop(0)
                of.give_back(of.enter(number).ticket)
                done = max(done, clock.now) + seconds_each
            if not refused(of):
                number = of.look().tickets[-1].number
                if chance.random() < 0.3:
                    of.give_back(of.enter(number).ticket)
                else:
                    queue.append(number)
            assert len(queue) <= limit


def test_a_dead_decoder_holds_nothing(three):
    """Its process is gone, or it is a zombie that its parent has not waited for."""
    numbers = [three.take() for _ in range(3)]
    dead = multiprocessing.get_context("fork").Process(target=lambda: [three.enter(number) for number in numbers])
    dead.start()
    dead.join()
    assert not refused(three)


def take_and_give(path: Path, limit: int, rounds: int) -> None:
    mine, of = [], Tickets(path, limit)
    for _ in range(rounds):
        try:
            mine.append(of.take())
        except QueueFull:
            if mine:
                of.give_back(mine.pop())
        assert len(of.look().tickets) <= limit
    for number in mine:
        of.give_back(number)


def test_processes_and_threads_share_one_count(tmp_path):
    """Four processes and two threads at once, one of them killed: never too many, and nothing stays locked."""
    path, limit = tmp_path / "tickets", 10
    context = multiprocessing.get_context("fork")
    victim = context.Process(target=take_and_give, args=(path, limit, 10**9))
    victim.start()
    others = [context.Process(target=take_and_give, args=(path, limit, 500)) for _ in range(3)]
    threads = [threading.Thread(target=take_and_give, args=(path, limit, 200)) for _ in range(2)]
    for worker in (*others, *threads):
        worker.start()
    os.kill(victim.pid, signal.SIGKILL)
    for worker in (*others, *threads, victim):
        worker.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    of = Tickets(path, limit)
    assert len(of.look().tickets) <= limit


def test_each_run_of_a_server_has_its_own(monkeypatch, tmp_path):
    """By the environment where we start the server, else by the parent's process and when it started."""
    monkeypatch.setenv(admission.PATH_VARIABLE, str(tmp_path / "here"))
    assert admission._path() == tmp_path / "here"
    monkeypatch.delenv(admission.PATH_VARIABLE)
    assert admission._path().name.startswith(f"florence2_tickets_{os.getppid()}_")


def test_the_metrics_count_the_requests_inside(three, decoder):
    """On their way and held; the expected wait; refused ones since the last call."""
    numbers = [three.take() for _ in range(3)]
    decoder.enter(numbers[0])
    assert refused(three)
    assert [value for _, value in decoder.samples()] == [2, 1, 0, 1, 0]
    assert [value for _, value in decoder.samples()] == [2, 1, 0, 0, 0]


def test_the_encoder_runs_for_tickets_and_for_others_only_while_it_is_idle(tmp_path):
    """Clients that call the encoder by themselves must not hold up those of the ensemble."""
    tickets = Tickets(tmp_path / "tickets", limit=4)
    pixels = np.full((2, 3, 3), 7, np.uint8)
    ours, theirs = fingerprint(pixels), fingerprint(np.full((2, 3, 3), 8, np.uint8))
    assert fingerprint(pixels[None]) == ours, "the encoder gets it as a batch of one"
    assert tickets.may_encode(theirs), "no request of the ensemble is on its way"
    assert not tickets.may_encode(theirs, waiting=MOST_WITHOUT_TICKET), "but too many of the others are"
    number = tickets.take()
    assert not tickets.may_encode(theirs)
    tickets.note_pixels(number, pixels)
    tickets.note_pixels(number + 1, pixels + 1)  # of no ticket
    assert tickets.may_encode(ours, waiting=1000) and not tickets.may_encode(theirs)
    tickets.enter(number)
    assert tickets.may_encode(theirs), "it has reached the decoder"
