"""Clients of a worker, and an engine whose steps are slow or whose searches never end."""

import threading
import time

from florence2.engine.backend import NO_TOKEN
from florence2.engine.sender import Job


class Client:
    """Collects the answers of one job."""

    def __init__(self, request, **extra):
        self.outcomes = []
        self._answered = threading.Event()
        self.job = Job(request, self._answer, **extra)

    def _answer(self, outcome):
        self.outcomes.append(outcome)
        self._answered.set()

    def wait(self):
        assert self._answered.wait(10), "every job gets an answer"
        return self.outcomes[0]


def slow_down(engine, monkeypatch, seconds=0.02):
    """Make steps take a while, so that requests overlap."""
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(seconds), step())[1])


def never_end(engine, monkeypatch):
    """Make greedy searches go on until they must stop."""
    find = engine.backend.step

    def go_on(step):
        found = find(step)
        for group, candidates in zip(step.layout.groups, found, strict=True):
            if group.beams == 1:
                free = step.forced[step.layout.starts[group.requests]] == NO_TOKEN
                candidates.tokens[free] = 5
        return found

    monkeypatch.setattr(engine.backend, "step", go_on)
