"""Admission: a ticket for each request, from before its image is decoded until its response.

Triton does not bound the queues inside an ensemble, so decoded images would pile up before the encoder. Preprocess
takes a ticket or refuses the request, and the decoder gives the ticket back. The processes share a small file, which
also measures how fast requests are answered, so that a request that would wait too long is refused at once
(docs/adr/0012).

The encoder runs for images that belong to a ticket, and for others only while no such image is awaited, so that clients
that call it by themselves do not hold up those of the ensemble.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from florence2.engine.metrics import EXPECTED_WAIT, INSIDE, REFUSED, Sample, Series
from florence2.errors import QueueFull
from florence2.triton.book import Book, Ticket

PATH_VARIABLE = "FLORENCE2_TICKETS"  # set by the embedded server, which removes the file with everything else
NO_TICKET = 0
MOST_WITHOUT_TICKET = 64  # images that wait for the encoder; 1.8 MB each in base

HEADER = struct.Struct("=qqdqqqdddddd")  # the number of tickets, and the other fields of Book
TICKET = struct.Struct("=qdqq")


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
        found = _short(fingerprint(pixels))
        with self._book() as book:
            for ticket in book.tickets:
                if ticket.number == number:
                    ticket.pixels = found

    def may_encode(self, image: bytes, waiting: int = 0) -> bool:
        """Return whether an image, by its fingerprint, belongs to a ticket, or the encoder is idle.

        Clients that call the encoder by themselves would otherwise make those of the ensemble wait behind them. They
        may queue while no image of the ensemble is awaited, but not without end. `waiting`: the length of that queue.
        """
        with self._book() as book:
            now = self._clock()
            awaited = [ticket for ticket in book.tickets if not ticket.holder and not book.is_overdue(ticket, now)]
            idle = not awaited and waiting < MOST_WITHOUT_TICKET
            return idle or any(ticket.pixels == _short(image) for ticket in book.tickets)

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


def fingerprint(pixels: NDArray[np.uint8]) -> bytes:
    """Return a cryptographic hash of an image, [H, W, 3], or a batch of one. Processors have instructions for it."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


def _short(found: bytes) -> int:
    """Return what of a fingerprint fits into a ticket. It is never 0."""
    return 1 + int.from_bytes(found[:7], "big")


def _path() -> Path:
    """Return a path for this run of the server, even where /dev/shm outlives it and process ids are reused."""
    if path := os.environ.get(PATH_VARIABLE):
        return Path(path)
    server = os.getppid()
    # In clock ticks since the machine's start. psutil's creation time moves with the wall clock, and processes that
    # start at different times must find the same file.
    started = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[19]
    return Path(f"/dev/shm/florence2_tickets_{server}_{started}")
