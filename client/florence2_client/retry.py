"""When to ask a busy or absent server again. Pure: the clients sleep, this says for how long.

Asking a question twice does no harm, so what is retried is a matter of use: UNAVAILABLE and failed connections may
pass, a caller's mistake and a fault of the server do not, and a missed deadline is the caller's own limit.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from florence2.errors import DeadlineExceeded, Unavailable

LOG = logging.getLogger("florence2_client.retry")
FIRST_WAIT = 0.1  # seconds
LONGEST_WAIT = 5.0


class Patience:
    """For one question: `timeout` bounds all of it, `retry_for` the time since it was first refused."""

    def __init__(self, timeout: float | None, retry_for: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._retry_for = retry_for
        self._retry_until: float | None = None
        self._wait = FIRST_WAIT

    def remaining(self) -> float | None:
        """Seconds left for the next attempt; None if there is no limit."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 1e-3)

    def wait_after(self, error: Unavailable) -> float:
        """Seconds to wait before asking again. Raises the error when that would be too late or of no use.

        Waits double, and are shortened by chance to as little as half, lest many clients come back in step.
        """
        now = self._clock()
        if self._retry_until is None:
            self._retry_until = now + self._retry_for
        wait = self._wait * random.uniform(0.5, 1.0)
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        late = now + wait > self._retry_until or (self._deadline is not None and now + wait >= self._deadline)
        if isinstance(error, DeadlineExceeded) or late:
            raise error
        LOG.info("%s; asking again for up to %.0f seconds", error, self._retry_until - now)
        return wait
