"""What is known of the requests inside: their tickets, and how fast requests are answered.

A request can be lost between preprocess and the decoder without any notice, and a client can call preprocess by itself
and abandon the ticket. A ticket that is on its way for much longer than others were is therefore *overdue*: it does not
count as work, and a full server replaces it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import psutil

AT_ONCE = 8  # requests never refused for the wait: the decoder's 24 rows hold as many of 3 beams together
MEMORY = 120.0  # seconds of work over which the rate of answers is measured; older ones fade

SHORTEST_LIFE = 2.0  # seconds on the way after which a ticket may be overdue
FIRST_LIFE = 30.0  # while no request has reached the decoder yet
LONGEST_LIFE = 600.0  # however slow a way was: a client can bring a ticket as late as it likes
LIFE = 3  # times the slowest way through the encoder
HALF_LIFE = 60.0  # seconds after which a slow way counts half
SHORTEST_PACE, LONGEST_PACE = 0.1, 5.0  # seconds between two overdue tickets that are replaced


@dataclass
class Ticket:
    number: int
    taken: float  # time.monotonic(), which all processes of a machine share
    holder: int = 0  # the decoder's process id; 0 on the way to it
    pixels: int = 0  # the digest of its image; 0 before it is decoded


@dataclass
class Book:
    """The content of the file."""

    tickets: list[Ticket] = field(default_factory=list)
    limit: int = 0  # of tickets; 0 for none, before preprocess has opened the file
    max_wait: float = 0.0  # seconds; 0 for no limit
    refused_full: int = 0
    refused_wait: int = 0
    replaced: int = 0  # overdue tickets, since a request last arrived at the decoder
    replaced_at: float = 0.0
    slowest: float = 0.0  # seconds from preprocess to decoder, seen at `slowest_at`
    slowest_at: float = 0.0
    busy: float = 0.0  # seconds of work up to the last answer; older ones fade
    answered: float = 0.0  # requests in these seconds
    answered_at: float = 0.0

    def slowest_way(self, now: float) -> float:
        """Return the slowest way from preprocess to the decoder that was seen lately."""
        return self.slowest * 0.5 ** ((now - self.slowest_at) / HALF_LIFE)

    def is_overdue(self, ticket: Ticket, now: float) -> bool:
        """Return whether the request is probably lost.

        The encoder is first come, first served, so no request on its way is much older than those that arrived last.
        """
        life = max(SHORTEST_LIFE, LIFE * self.slowest_way(now)) if self.slowest else FIRST_LIFE
        return not ticket.holder and now - ticket.taken >= min(life, LONGEST_LIFE)

    def working(self, now: float) -> int:
        """Return how many requests are inside, without those that are probably lost."""
        return sum(not self.is_overdue(ticket, now) for ticket in self.tickets)

    def answer(self, number: int, now: float) -> None:
        """Count an answer, and the time since the one before it in which the decoder had this or another request.

        Other time is no measure of the speed: nothing was inside, or only tickets that were lost.
        """
        since = [ticket.taken for ticket in self.tickets if ticket.holder or ticket.number == number]
        passed = now - max(min(since), self.answered_at)
        kept = math.exp(-passed / MEMORY)
        self.busy = self.busy * kept + MEMORY * (1 - kept)
        self.answered = self.answered * kept + 1
        self.answered_at = now

    def expected_wait(self, now: float) -> float:
        """Return after how many seconds the requests inside will be answered; 0 if nothing was measured.

        When few requests are inside, the rate is measured too low, because a batch of them takes hardly longer.
        """
        return self.working(now) * self.busy / self.answered if self.answered else 0.0

    def is_full(self) -> bool:
        return 0 < self.limit <= len(self.tickets)

    def is_slow(self, now: float, longest: float) -> bool:
        """Return whether one more request would wait longer than `longest` seconds."""
        return self.working(now) >= AT_ONCE and self.expected_wait(now) > longest

    def make_room(self, now: float) -> None:
        """Drop the tickets of dead decoders and, now and then, the oldest overdue one.

        The pace is at most the encoder's, so that its queue does not grow even if the request was not lost. It slows
        down while no request arrives: the queue of an encoder that hangs must not grow without end.
        """
        dead = {process for process in {ticket.holder for ticket in self.tickets} if process and _is_dead(process)}
        self.tickets = [ticket for ticket in self.tickets if ticket.holder not in dead]
        pace = max(SHORTEST_PACE, self.slowest_way(now)) * 2 ** min(self.replaced, 10)
        if self.is_full() and now - self.replaced_at >= min(pace, LONGEST_PACE):
            overdue = [ticket for ticket in self.tickets if self.is_overdue(ticket, now)]
            if overdue:
                self.tickets.remove(min(overdue, key=lambda ticket: ticket.taken))
                self.replaced += 1
                self.replaced_at = now

    def arrive(self, ticket: Ticket, now: float) -> None:
        """Note that a request reached the decoder, this process. Overdue ones that started before it are lost."""
        if now - ticket.taken >= self.slowest_way(now):
            self.slowest, self.slowest_at = now - ticket.taken, now
        self.replaced = 0
        ticket.holder = os.getpid()
        self.tickets = [each for each in self.tickets if each.taken >= ticket.taken or not self.is_overdue(each, now)]


def _is_dead(process: int) -> bool:
    """Return whether a process has ended, even if its parent has not waited for it."""
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
