"""Memory for results that may be wanted again: bounded in bytes; the least recently used go first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

MIB = 2**20
# What the embedded server sets for the processes of its models, in MiB: the size of the cache of image features, and
# that of answers.
FEATURES_VARIABLE = "FLORENCE2_CACHE_MIB"
ANSWERS_VARIABLE = "FLORENCE2_CACHE_ANSWERS_MIB"
DEFAULT_MIB = 256  # features of 145 images with Florence-2-base, of 109 with large
ENTRY_BYTES = 1024  # of a key and the objects that belong to an entry, besides their content
T = TypeVar("T")


class Cache(Generic[T]):
    """Values by key, which must not be changed. For any thread. With 0 bytes it stays empty."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.evictions = 0  # so far
        # With their bytes, the least recently used first.
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of_this_server(cls, variable: str, default_mib: int) -> Cache[T]:
        """Return an empty cache of the size that the server was started with."""
        return cls(int(os.environ.get(variable, default_mib)) * MIB)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> T | None:
        """Return what was put under the key, if it is still here."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: T, content_bytes: int) -> None:
        """Keep a value, unless it is larger than the whole cache. Equal keys stand for equal values."""
        size = ENTRY_BYTES + content_bytes
        if size > self.most_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = (value, size)
            self.bytes += size
            while self.bytes > self.most_bytes:
                _, (_, least) = self._entries.popitem(last=False)
                self.bytes -= least
                self.evictions += 1
