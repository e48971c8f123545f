"""A request that would wait too long, by the measured rate of answers, is refused at once; nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from florence2.errors import QueueFull
from florence2.triton.admission import Tickets
from florence2.triton.book import AT_ONCE
from tests.unit.triton.conftest import Clock


class Server:
    """A decoder that answers `together` requests in `seconds`, in order of arrival, behind tickets."""

    def __init__(self, path: Path, clock: Clock, seconds: float, together: int = 1, **limits) -> None:
        self.of, self.clock = Tickets(path, 128, clock, **limits), clock
        self.seconds, self.together = seconds, together
        self.inside: list[tuple[int, float]] = []
        self.waits: list[float] = []

    def send(self, timeout: float = float("inf")) -> bool:
        try:
            self.inside.append((self.of.take(timeout), self.clock.now))
        except QueueFull:
            return False
        self.of.enter(self.inside[-1][0])
        return True

    def work(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.inside and self.clock.now < end:
            self.clock.now += self.seconds
            batch, self.inside = self.inside[: self.together], self.inside[self.together :]
            for number, since in batch:
                self.of.give_back(number, answered=True)
                self.waits.append(self.clock.now - since)
        self.clock.now = max(self.clock.now, end)


@pytest.fixture
def make_server(tmp_path: Path, clock: Clock):
    return lambda *args, **options: Server(tmp_path / "server", clock, *args, **options)


def test_what_cannot_be_answered_in_time_is_refused(make_server):
    """200 clients, an answer every 2 seconds, at most 60 seconds: 31 get in, and all of them are answered in time."""
    server = make_server(2.0, max_wait=60)
    assert server.send()
    server.work(2)
    taken = [server.send() for _ in range(200)]
    assert 30 <= sum(taken) <= 31 and not any(taken[31:])
    with pytest.raises(
        QueueFull, match=r"wait about 6[12] seconds behind 31 others, longer than this server allows \(60\)"
    ):
        server.of.take()
    server.work(300)
    assert len(server.waits) == 32 and max(server.waits) <= 62
    assert server.of.look().refused_wait == 170 and not server.of.look().refused_full


def test_a_batch_is_measured_as_one(make_server):
    """Eight answers in 8 seconds are one each second."""
    server = make_server(8.0, 8, max_wait=60)
    for _ in range(20):
        for _ in range(16 - len(server.inside)):
            server.send()
        server.work(8)
    assert 54 <= sum(server.send() for _ in range(200)) + 8 <= 66


def test_nothing_is_refused_before_a_measurement(make_server):
    """A start is not a measurement, nor is the time until the first answer: only the number counts."""
    server = make_server(100.0, max_wait=60)
    assert sum(server.send() for _ in range(64)) == 64
    server.clock.now += 30
    assert sum(server.send() for _ in range(100)) == 64


def test_an_idle_server_refuses_nothing(make_server):
    """Idle time is no slowness, and the last measurement was of one request at a time."""
    server = make_server(1.0, max_wait=60)
    server.send()
    server.work(1)
    server.clock.now += 10_000
    assert sum(server.send() for _ in range(60)) == 60


def test_a_few_requests_are_never_refused_for_the_wait(make_server):
    """They are decoded together, which a measurement of one at a time cannot show."""
    server = make_server(30.0, max_wait=1)
    server.send()
    server.work(30)
    assert [server.send(timeout=5) for _ in range(AT_ONCE + 3)] == [True] * AT_ONCE + [False] * 3


def test_a_request_is_refused_that_would_miss_its_own_timeout(make_server):
    """Twenty requests wait for a second each; one with a timeout of 5 seconds has no chance, one with 30 has."""
    server = make_server(1.0, max_wait=60)
    server.send()
    server.work(1)
    assert all(server.send() for _ in range(20))
    with pytest.raises(QueueFull, match=r"about 20 seconds behind 20 others, longer than its timeout \(5\)"):
        server.of.take(5)
    assert server.send(30)


def test_a_slow_phase_is_forgotten(make_server):
    """A server that hung for ten minutes admits as many as before after some minutes of work."""
    server = make_server(1.0, max_wait=60)
    server.send()
    server.work(1)
    server.send()
    server.clock.now += 600
    server.work(1)
    server.send()
    assert sum(server.send() for _ in range(50)) == AT_ONCE - 1
    for _ in range(240):
        server.work(1)
        while len(server.inside) < 40 and server.send():
            pass
    assert len(server.inside) == 40


def test_the_decoder_learns_how_long_a_request_may_still_wait(make_server, clock):
    """So that it can end one that was admitted in error."""
    server = make_server(1.0, max_wait=60)
    number = server.of.take()
    clock.now += 12
    assert server.of.enter(number).start_within == 48


def test_only_answers_count_as_answered(make_server):
    """A refused image or a missed deadline says nothing about the speed."""
    server = make_server(1.0, max_wait=60)
    for _ in range(30):
        server.of.give_back(server.of.take())
    assert not server.of.look().answered
