"""An encoder's session that a test can hold or make fail, and requests to the encoder."""

from __future__ import annotations

import queue
import threading
from collections import Counter

import numpy as np

from florence2.triton.cache import ENTRY_BYTES, Cache
from florence2.triton.encoder import Encoder

SECONDS = 60  # a wait that only a defect makes this long
ENTRY = ENTRY_BYTES + 4  # one float32


class FakeSession:
    """Return ten times its input. A test can hold a run, and make the runs of some images fail."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []  # the images of each
        self.bad: set[int] = set()
        self.began: queue.Queue[list[int]] = queue.Queue()
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, feeds):
        images = feeds["X"].reshape(-1).tolist()
        self.runs.append(images)
        self.began.put(images)
        assert self.go_on.wait(SECONDS)
        if self.bad & set(images):
            raise RuntimeError("out of memory")
        return {"Y": feeds["X"].astype(np.float32) * 10}

    def hold(self) -> None:
        self.go_on.clear()

    def wait_until_it_runs(self) -> list[int]:
        return self.began.get(timeout=SECONDS)


class Requests:
    """Send images to an encoder and collect what each request gets."""

    def __init__(self, session: FakeSession, batch: int = 1, entries: int = 100) -> None:
        self.samples: queue.SimpleQueue = queue.SimpleQueue()
        self.encoder = Encoder(session, batch, Cache(entries * ENTRY), self.samples.put)
        self.inboxes: list[queue.Queue] = []

    def send(self, image: int, allowed=lambda waiting: True) -> queue.Queue:
        inbox: queue.Queue = queue.Queue()
        kept = self.encoder.submit(image, {"X": np.array([[image]])}, inbox.put, allowed=allowed)
        if kept is not None:
            inbox.put(kept)
        self.inboxes.append(inbox)
        return inbox

    def metrics(self) -> dict[str, float]:
        """Stop the encoder, and return all that it published."""
        self.encoder.stop()
        totals: Counter[str] = Counter()
        while not self.samples.empty():
            for series, value in self.samples.get():
                name = series.metric.name.removeprefix("florence2_encoder_")
                totals[name] = totals[name] + value if name.endswith("_total") else value
        return dict(totals)


def result(inbox: queue.Queue):
    """Return the features of an image, or the error; each request gets one response."""
    found = inbox.get(timeout=SECONDS)
    assert inbox.empty()
    return found if isinstance(found, Exception) else found["Y"].item()
