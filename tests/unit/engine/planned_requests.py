"""An engine that counts instead of computing, and requests with a plan of what goes wrong."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace

from florence2.contract import GenerationOptions
from florence2.engine.backend import CacheBytes
from florence2.engine.beam import Generation
from florence2.engine.scheduler import Scheduler
from florence2.engine.sender import Job
from florence2.engine.sequence import Request, Sequence
from florence2.errors import InternalError, Unavailable

ROWS, WAITING = 6, 8


@dataclass
class Plan:
    """A request, and what goes wrong with it."""

    beams: int
    tokens: int
    trouble: str = ""  # add, prefill, step, die, late, gone, cannot wait, unanswerable, cannot be polled
    outcomes: list = field(default_factory=list)
    polled_after_answer: int = 0

    def expected(self) -> Generation:
        return Generation(tuple(range(self.tokens)), (0.0,) * self.tokens, float(self.beams), "stop")


class Engine:
    """The real scheduler, and steps that count instead of computing. Checks every invariant after each step."""

    backend = SimpleNamespace(cache_bytes=CacheBytes(1, 1), check_device=lambda: None)

    def __init__(self):
        self.scheduler = Scheduler(ROWS, WAITING)
        self.hurt: set[int] = set()  # ids of plans that were live when a step failed
        self.broken: AssertionError | None = None

    def check(self, request):
        pass

    def add(self, request):
        if request.image_features.trouble == "add":
            raise MemoryError
        sequence = Sequence(request, SimpleNamespace(length=1))
        self.scheduler.add(sequence)
        return sequence

    def step(self):
        try:
            return self._step()
        finally:
            try:
                self.scheduler.check()
            except AssertionError as error:
                self.broken = error

    def _step(self):
        newcomer = self.scheduler.admit()
        if newcomer and plan_of(newcomer).trouble == "prefill":
            newcomer.finish(InternalError("prefill"))
        for sequence in self.scheduler.live:
            if not sequence.done:
                self._advance(sequence)
        return self.scheduler.retire()

    def _advance(self, sequence):
        plan = plan_of(sequence)
        sequence.search.length += 1
        if plan.trouble in ("step", "die") and sequence.search.length == 3:
            self.hurt |= {id(plan_of(live)) for live in self.scheduler.live}
            raise SystemExit if plan.trouble == "die" else MemoryError
        if sequence.search.length > plan.tokens:
            sequence.finish(plan.expected())

    def fail_live(self):
        for sequence in self.scheduler.live:
            if not sequence.done:
                sequence.finish(InternalError("step"))
        return self.scheduler.retire()


def plan_of(sequence) -> Plan:
    return sequence.request.image_features


def job_of(plan: Plan) -> Job:
    def answer(outcome):
        plan.outcomes.append(outcome)
        if plan.trouble == "unanswerable":
            raise OSError("the connection broke")

    def cancelled():
        plan.polled_after_answer += len(plan.outcomes)
        if plan.trouble == "cannot be polled":
            raise OSError("the server is gone")
        return plan.trouble == "gone"

    request = Request(plan, [0, 2], GenerationOptions(64, plan.beams, 0, 1.0, True))
    deadline = time.monotonic() + 0.002 if plan.trouble == "late" else float("inf")
    start_by = time.monotonic() + 0.05 if plan.trouble == "cannot wait" else float("inf")
    return Job(request, answer, cancelled, deadline, start_by, next_poll=0)


def submit(worker, plan) -> bool:
    try:
        worker.submit(job_of(plan))
    except Unavailable as error:
        plan.outcomes.append(error)
        return False
    return True


def wait_for_answers(plans):
    end = time.monotonic() + 10
    while not all(plan.outcomes for plan in plans):
        assert time.monotonic() < end, "every job gets an answer"
        time.sleep(0.0005)
