"""Who is inside: a ticket for each request from before its picture is decoded until it is answered.

Triton bounds no queue inside an ensemble, and decoded pictures would pile up before the encoder. So preprocess takes a
ticket or refuses, and the decoder gives it back; the two are processes, and share a small file (docs/adr/0012).

A request may die between the two without a word. Its ticket then ends by age: the encoder is first come, first served,
so nobody on the way is much older than those who arrived last.
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

from florence2.engine.metrics import INSIDE, REFUSED, Sample, Series
from florence2.errors import QueueFull

PATH_VARIABLE = "FLORENCE2_TICKETS"  # set by the embedded server, which removes the file with everything else
NO_TICKET = 0
SHORTEST_PATIENCE = 30.0  # seconds; a batch of pictures takes less
LONGEST_PATIENCE = 600.0
PATIENCE = 3  # times the slowest way through the encoder
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
    """What the file holds. `slowest`: seconds from preprocess to decoder, seen at `slowest_at`."""

    tickets: list[Ticket] = field(default_factory=list)
    refused: int = 0
    given_up: int = 0  # times that tickets ended by age since somebody arrived
    slowest: float = 0.0
    slowest_at: float = 0.0

    def patience(self, now: float) -> float:
        """How old a ticket on its way may become. Doubles when nobody comes, lest a hanging encoder's queue grow."""
        slowest = self.slowest * 0.5 ** ((now - self.slowest_at) / HALF_LIFE)
        return min(max(SHORTEST_PATIENCE, PATIENCE * slowest) * 2 ** min(self.given_up, 5), LONGEST_PATIENCE)

    def end_the_lost(self, now: float) -> None:
        """Those who take too long, and those whose decoder died."""
        patience = self.patience(now)
        held = [ticket for ticket in self.tickets if ticket.holder and not _is_gone(ticket.holder)]
        coming = [ticket for ticket in self.tickets if not ticket.holder]
        on_time = [ticket for ticket in coming if now - ticket.taken < patience]
        self.given_up += len(on_time) < len(coming)
        self.tickets = held + on_time

    def arrived(self, ticket: Ticket, now: float) -> None:
        age, before = now - ticket.taken, self.slowest * 0.5 ** ((now - self.slowest_at) / HALF_LIFE)
        if age >= before:
            self.slowest, self.slowest_at = age, now
        self.given_up = 0
        ticket.holder = os.getpid()


class Tickets:
    """For any thread and process. Beware: `limit` is the room made in the file, and the taker's to keep to."""

    def __init__(self, path: Path, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._lock = threading.Lock()
        self._published = 0  # of those refused
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Now, while it can be said: later a full /dev/shm would be found in the middle of a request.
        os.posix_fallocate(self._file, 0, HEADER.size + limit * TICKET.size)

    @classmethod
    def of_this_server(cls, limit: int = 0) -> Tickets:
        """To be called in a model's process: tritonserver is its parent."""
        return cls(_path(), limit)

    def take(self) -> int:
        """Raises QueueFull when `limit` requests are inside."""
        with self._book() as book:
            now = self._clock()
            if len(book.tickets) >= self._limit:
                book.end_the_lost(now)
            full = len(book.tickets) >= self._limit
            book.refused += full
            if not full:
                ticket = Ticket(secrets.randbits(62) + 1, now)  # nobody can guess another's
                book.tickets.append(ticket)
                return ticket.number
        raise QueueFull(f"the server's queue is full ({self._limit} requests are in it); try again later")

    def arrive(self, number: int) -> float:
        """The request reached this process, the decoder's: how many seconds after its ticket. 0 for an unknown one."""
        with self._book() as book:
            now = self._clock()
            for ticket in book.tickets:
                if ticket.number == number:
                    book.arrived(ticket, now)
                    return now - ticket.taken
        return 0.0

    def give_back(self, number: int) -> None:
        with self._book() as book:
            book.tickets = [ticket for ticket in book.tickets if ticket.number != number]

    def look(self) -> Book:
        with self._book() as book:
            return book

    def samples(self) -> list[Sample]:
        """For the metrics, from one process alone. Who was lost counts as inside until somebody needs the place."""
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
        """The book, alone; what was changed is written. The kernel unlocks the file of a process that dies."""
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
        header = HEADER.pack(len(book.tickets), book.refused, book.given_up, book.slowest, book.slowest_at)
        tickets = (TICKET.pack(ticket.number, ticket.taken, ticket.holder) for ticket in book.tickets)
        os.pwrite(self._file, header + b"".join(tickets), 0)


def _path() -> Path:
    """A new one for each run of a server, even where /dev/shm outlives it and process ids come again."""
    if path := os.environ.get(PATH_VARIABLE):
        return Path(path)
    server = os.getppid()
    started = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[19]
    return Path(f"/dev/shm/florence2_tickets_{server}_{started}")


def _is_gone(process: int) -> bool:
    """A dead process that nobody waited for has no command line."""
    try:
        return not Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return True
