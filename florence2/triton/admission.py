"""Admission: a ticket for each request, from before its image is decoded until its response.

Triton does not bound the queues inside an ensemble, so decoded images would pile up before the encoder. Preprocess
takes a ticket or refuses the request, and the decoder gives the ticket back. The processes share a small file, which
also measures how fast requests are answered, so that a request that would wait too long is refused at once
(docs/adr/0012).

The encoder runs for images that belong to a ticket, and for others only while no such image is awaited, so that clients
that call it by themselves do not hold up those of the ensemble.

A request can be lost between the two without any notice, and a client can call preprocess by itself and abandon the
ticket. A ticket that is on its way for much longer than others were is therefore *overdue*: it does not count as work,
and a full server replaces it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from florence2.engine.metrics import EXPECTED_WAIT, INSIDE, REFUSED, Sample, Series
from florence2.errors import QueueFull

PATH_VARIABLE = "FLORENCE2_TICKETS"  # set by the embedded server, which removes the file with everything else
NO_TICKET = 0
AT_ONCE = 8  # requests never refused for the wait: the decoder's 24 rows hold as many of 3 beams together
MEMORY = 120.0  # seconds of work over which the rate of answers is measured; older ones fade

SHORTEST_LIFE = 2.0  # seconds on the way after which a ticket may be overdue
FIRST_LIFE = 30.0  # while no request has reached the decoder yet
LONGEST_LIFE = 600.0  # however slow a way was: a client can bring a ticket as late as it likes
LIFE = 3  # times the slowest way through the encoder
HALF_LIFE = 60.0  # seconds after which a slow way counts half
SHORTEST_PACE, LONGEST_PACE = 0.1, 5.0  # seconds between two overdue tickets that are replaced

HEADER = struct.Struct("=qqdqqqdddddd")  # the number of tickets, and the other fields of Book
TICKET = struct.Struct("=qdqq")


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


@dataclass(frozen=True)
class Entry:
    """A request that reached the decoder. `ticket` must be given back."""

    ticket: int
    age: float  # seconds since the ticket was taken
    start_within: float  # seconds from now in which it must be started; after that it has waited too long


class Tickets:
    """The tickets of one server, for any thread and process.

    Preprocess sets `limit` and `max_wait` for all; the others leave them out.
    """

    def __init__(
        self, path: Path, limit: int = 0, clock: Callable[[], float] = time.monotonic, *, max_wait: float = 0.0
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._published = (0, 0)  # of those refused
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Reserve the room now, where the error can be reported: later a full /dev/shm would fail a request.
        os.posix_fallocate(self._file, 0, HEADER.size + limit * TICKET.size)
        if limit:
            with self._book() as book:
                book.limit, book.max_wait = limit, max_wait

    @classmethod
    def of_this_server(cls, limit: int = 0, max_wait: float = 0.0) -> Tickets:
        """Return the tickets of the server whose model this process runs: tritonserver is its parent."""
        return cls(_path(), limit, max_wait=max_wait)

    def take(self, timeout: float = math.inf) -> int:
        """Return the number of a new ticket, for a request that must be answered within `timeout` seconds.

        Raises QueueFull while `limit` requests are inside, or if the request would wait too long behind them.
        """
        with self._book() as book:
            return self._add(book, timeout).number

    def note_pixels(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Note which image the encoder will get for a ticket; nothing for an unknown one."""
        found = digest(pixels)
        with self._book() as book:
            for ticket in book.tickets:
                if ticket.number == number:
                    ticket.pixels = found

    def may_encode(self, pixels: NDArray[np.uint8]) -> bool:
        """Return whether an image belongs to a ticket, or the encoder is idle.

        Clients that call the encoder by themselves would otherwise make those of the ensemble wait behind them.
        """
        found = digest(pixels)
        with self._book() as book:
            now = self._clock()
            awaited = [ticket for ticket in book.tickets if not ticket.holder and not book.is_overdue(ticket, now)]
            return not awaited or any(ticket.pixels == found for ticket in book.tickets)

    def enter(self, number: int, timeout: float = math.inf) -> Entry:
        """Note that a request reached the decoder, this process, and return what is known about it.

        A request without a ticket, from a client that calls the decoder by itself, gets one or is refused like others.
        """
        with self._book() as book:
            now = self._clock()
            ticket = next((ticket for ticket in book.tickets if ticket.number == number), None)
            if ticket is None:
                ticket = self._add(book, timeout)
                ticket.holder = os.getpid()
            else:
                book.arrive(ticket, now)
            age = now - ticket.taken
            return Entry(ticket.number, age, book.max_wait - age if book.max_wait else math.inf)

    def give_back(self, number: int, *, answered: bool = False) -> None:
        """End a ticket; an unknown one is ignored."""
        with self._book() as book:
            if answered and any(ticket.number == number for ticket in book.tickets):
                book.answer(number, self._clock())
            book.tickets = [ticket for ticket in book.tickets if ticket.number != number]

    def look(self) -> Book:
        """Return the content of the file."""
        with self._book() as book:
            return book

    def samples(self) -> list[Sample]:
        """Return the metrics, in one process only. A lost request stays counted until its slot is needed."""
        book = self.look()
        held = sum(bool(ticket.holder) for ticket in book.tickets)
        (full, wait), self._published = self._published, (book.refused_full, book.refused_wait)
        return [
            (Series(INSIDE, ("encoder",)), len(book.tickets) - held),
            (Series(INSIDE, ("decoder",)), held),
            (Series(EXPECTED_WAIT), book.expected_wait(self._clock())),
            (Series(REFUSED, ("full",)), book.refused_full - full),
            (Series(REFUSED, ("wait",)), book.refused_wait - wait),
        ]

    def _add(self, book: Book, timeout: float) -> Ticket:
        now = self._clock()
        longest = min(book.max_wait or math.inf, timeout)
        if book.is_full() or book.is_slow(now, longest):
            book.make_room(now)
        if book.is_full():
            book.refused_full += 1
            raise QueueFull(f"the server's queue is full ({book.limit} requests are in it); try again later")
        if book.is_slow(now, longest):
            book.refused_wait += 1
            allowed = "than its timeout" if longest == timeout else "than this server allows"
            raise QueueFull(
                f"the request would wait about {book.expected_wait(now):.0f} seconds behind {book.working(now)} others,"
                f" longer {allowed} ({longest:g}); try again later"
            )
        ticket = Ticket(secrets.randbits(62) + 1, now)  # not to be guessed
        book.tickets.append(ticket)
        return ticket

    @contextlib.contextmanager
    def _book(self) -> Iterator[Book]:
        """Lock the file, yield its content, and write back what changed. The kernel unlocks it when a process dies."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                content = os.pread(self._file, os.fstat(self._file).st_size, 0)
                count, *header = HEADER.unpack_from(content)
                tickets = TICKET.iter_unpack(content[HEADER.size : HEADER.size + count * TICKET.size])
                book = Book([Ticket(*values) for values in tickets], *header)
                try:
                    yield book
                finally:  # a refusal is counted too
                    _, *header = vars(book).values()
                    packed = (TICKET.pack(*vars(ticket).values()) for ticket in book.tickets)
                    os.pwrite(self._file, HEADER.pack(len(book.tickets), *header) + b"".join(packed), 0)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)


def digest(pixels: NDArray[np.uint8]) -> int:
    """Return a digest of an image, [H, W, 3], or a batch of one. It is never 0."""
    return 1 + int.from_bytes(hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=7).digest(), "big")


def _path() -> Path:
    """Return a path for this run of the server, even where /dev/shm outlives it and process ids are reused."""
    if path := os.environ.get(PATH_VARIABLE):
        return Path(path)
    server = os.getppid()
    # In clock ticks since the machine's start. psutil's creation time moves with the wall clock, and processes that
    # start at different times must find the same file.
    started = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[19]
    return Path(f"/dev/shm/florence2_tickets_{server}_{started}")


def _is_dead(process: int) -> bool:
    """Return whether a process has ended, even if its parent has not waited for it."""
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
