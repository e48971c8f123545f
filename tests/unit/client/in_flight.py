"""A transport of the tests that counts the requests in flight."""

from __future__ import annotations

import threading


class CountingTransport:
    """`most`: the largest number of requests in flight at once. A subclass has `answer(tensors, timeout)`."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def infer(self, model, tensors, timeout):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.answer(tensors, timeout)
        finally:
            with self.lock:
                self.now -= 1

    def close(self):
        pass
