"""A queue with a thread of its own that empties it, for work that blocks, such as sending responses."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

PUBLISH_SECONDS = 1.0

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Deliver items in order, in a thread.

    `deliver` gets each item and must not raise. `publish` is called once a second, and at the end. `watch`, if there is
    one, is called after each item, and every `poll_seconds` while there are none.
    """

    def __init__(
        self,
        deliver: Callable[[Item], None],
        publish: Callable[[], None],
        watch: Callable[[], None] = lambda: None,
        poll_seconds: float = PUBLISH_SECONDS,
    ) -> None:
        self._deliver, self._publish, self._watch, self._poll_seconds = deliver, publish, watch, poll_seconds
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()  # None ends the thread
        self._thread = threading.Thread(target=self._run, name="florence2-sender", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: Item) -> None:
        """Append an item."""
        self._items.put(item)

    def empty(self) -> bool:
        """Return whether no item waits."""
        return self._items.empty()

    def stop(self, seconds: float) -> None:
        """End the thread, after it has delivered everything; wait at most so long."""
        self._items.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        publish_at = 0.0
        while True:
            try:
                item = self._items.get(timeout=self._poll_seconds)
            except queue.Empty:
                pass
            else:
                if item is None:
                    break
                self._deliver(item)
                del item  # Triton's request objects must go at once
            self._watch()
            if time.monotonic() >= publish_at:
                self._publish()
                publish_at = time.monotonic() + PUBLISH_SECONDS
        self._publish()
