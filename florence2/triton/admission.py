"""Admission: a ticket for each request, from before its image is decoded until its response.

Triton does not bound the queues inside an ensemble, so decoded images would pile up before the encoder. Preprocess
takes a ticket or refuses the request, and the decoder gives the ticket back. The two are processes that share a small
file (docs/adr/0012).

A request can be lost between the two without any notice. Its ticket then expires by age: the encoder is first come,
first served, so no request on its way is much older than those that arrived last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from florence2.engine.metrics import INSIDE, REFUSED, Sample, Series
from florence2.errors import QueueFull

PATH_VARIABLE = "FLORENCE2_TICKETS"  # set by the embedded server, which removes the file with everything else
NO_TICKET = 0
SHORTEST_LIFE = 30.0  # seconds a ticket lasts at least on its way; a batch of images takes less
LONGEST_LIFE = 600.0
LIFE = 3  # times the slowest way through the encoder
HALF_LIFE = 60.0  # seconds after which a slow way counts half

HEADER = struct.Struct("=qqqdd")
TICKET = struct.Struct("=qdq")


@dataclass
class Ticket:
    number: int
    taken: float  # time.monotonic(), which all processes of a machine share
    holder: int = 0  # the decoder's process id; 0 on the way to it


@dataclass
class Book:
    """The content of the file. `slowest`: seconds from preprocess to decoder, seen at `slowest_at`."""

    tickets: list[Ticket] = field(default_factory=list)
    refused: int = 0
    expired: int = 0  # how often tickets expired since a request last arrived at the decoder
    slowest: float = 0.0
    slowest_at: float = 0.0

    def life(self, now: float) -> float:
        """Return how old a ticket on its way may become: twice as old each time that tickets expired in vain.

        Otherwise the queue of an encoder that hangs would grow without end.
        """
        slowest = self.slowest * 0.5 ** ((now - self.slowest_at) / HALF_LIFE)
        return min(max(SHORTEST_LIFE, LIFE * slowest) * 2 ** min(self.expired, 5), LONGEST_LIFE)

    def expire(self, now: float) -> None:
        """Drop the tickets of requests that take too long, and of those whose decoder died."""
        life = self.life(now)
        held = [ticket for ticket in self.tickets if ticket.holder and not _is_dead(ticket.holder)]
        coming = [ticket for ticket in self.tickets if not ticket.holder]
        on_time = [ticket for ticket in coming if now - ticket.taken < life]
        self.expired += len(on_time) < len(coming)
        self.tickets = held + on_time

    def arrive(self, ticket: Ticket, now: float) -> None:
        """Note that a request reached the decoder, this process."""
        age, before = now - ticket.taken, self.slowest * 0.5 ** ((now - self.slowest_at) / HALF_LIFE)
        if age >= before:
            self.slowest, self.slowest_at = age, now
        self.expired = 0
        ticket.holder = os.getpid()


class Tickets:
    """The tickets of one server, for any thread and process. Only `take` keeps to `limit`, the file's room."""

    def __init__(self, path: Path, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._lock = threading.Lock()
        self._published = 0  # of those refused
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Reserve the room now, where the error can be reported: later a full /dev/shm would fail a request.
        os.posix_fallocate(self._file, 0, HEADER.size + limit * TICKET.size)

    @classmethod
    def of_this_server(cls, limit: int = 0) -> Tickets:
        """Return the tickets of the server whose model this process runs: tritonserver is its parent."""
        return cls(_path(), limit)

    def take(self) -> int:
        """Return the number of a new ticket. Raises QueueFull while `limit` requests are inside."""
        with self._book() as book:
            now = self._clock()
            if len(book.tickets) >= self._limit:
                book.expire(now)
            full = len(book.tickets) >= self._limit
            book.refused += full
            if not full:
                ticket = Ticket(secrets.randbits(62) + 1, now)  # not to be guessed
                book.tickets.append(ticket)
                return ticket.number
        raise QueueFull(f"the server's queue is full ({self._limit} requests are in it); try again later")

    def arrive(self, number: int) -> float:
        """Note that the request reached the decoder, this process; return the age of its ticket, 0 if it is unknown."""
        with self._book() as book:
            now = self._clock()
            for ticket in book.tickets:
                if ticket.number == number:
                    book.arrive(ticket, now)
                    return now - ticket.taken
        return 0.0

    def give_back(self, number: int) -> None:
        """End a ticket; an unknown one is ignored."""
        with self._book() as book:
            book.tickets = [ticket for ticket in book.tickets if ticket.number != number]

    def look(self) -> Book:
        """Return the content of the file."""
        with self._book() as book:
            return book

    def samples(self) -> list[Sample]:
        """Return the metrics, in one process only. A lost request stays counted until its slot is needed."""
        book = self.look()
        held = sum(bool(ticket.holder) for ticket in book.tickets)
        grown, self._published = book.refused - self._published, book.refused
        return [
            (Series(INSIDE, ("encoder",)), len(book.tickets) - held),
            (Series(INSIDE, ("decoder",)), held),
            (Series(REFUSED), grown),
        ]

    @contextlib.contextmanager
    def _book(self) -> Iterator[Book]:
        """Lock the file, yield its content, and write back what changed. The kernel unlocks it when a process dies."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                book = self._read()
                yield book
                self._write(book)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read(self) -> Book:
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        count, refused, given_up, slowest, slowest_at = HEADER.unpack_from(content)
        tickets = content[HEADER.size : HEADER.size + count * TICKET.size]
        return Book([Ticket(*values) for values in TICKET.iter_unpack(tickets)], refused, given_up, slowest, slowest_at)

    def _write(self, book: Book) -> None:
        header = HEADER.pack(len(book.tickets), book.refused, book.expired, book.slowest, book.slowest_at)
        tickets = (TICKET.pack(ticket.number, ticket.taken, ticket.holder) for ticket in book.tickets)
        os.pwrite(self._file, header + b"".join(tickets), 0)


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
