"""Memory for results that may be wanted again: bounded in bytes; the least recently used go first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIB = 2**20
# Set by the embedded server for the processes of its models; in MiB.
FEATURES_VARIABLE = "FLORENCE2_CACHE_MIB"
DEFAULT_MIB = 256  # features of 145 images with Florence-2-base, of 109 with large
ENTRY_BYTES = 1024  # of a key, a dictionary and its arrays, besides their content
Arrays = Mapping[str, NDArray[Any]]


class Cache:
    """Named arrays by key. For any thread; the arrays must not be changed. With 0 bytes it stays empty."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.evictions = 0  # so far
        self._entries: OrderedDict[Hashable, Arrays] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    @classmethod
    def of_this_server(cls, variable: str, default_mib: int) -> Cache:
        """Return an empty cache of the size that the server was started with."""
        return cls(int(os.environ.get(variable, default_mib)) * MIB)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Arrays | None:
        """Return what was put under the key, if it is still here."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: Hashable, arrays: Arrays) -> None:
        """Keep the arrays, unless they are larger than the whole cache. Equal keys stand for equal arrays."""
        size = size_of(arrays)
        if size > self.most_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = arrays
            self.bytes += size
            while self.bytes > self.most_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= size_of(oldest)
                self.evictions += 1


def size_of(arrays: Arrays) -> int:
    """Return the bytes that an entry takes. The elements of a STRING tensor lie outside of its array."""
    texts = sum(len(text) for array in arrays.values() if array.dtype == np.object_ for text in array.flat)
    return ENTRY_BYTES + sum(array.nbytes for array in arrays.values()) + texts
