"""What the decoder and the vision encoder count: their metrics, and the recorder that they report to. Pure Python.

Nothing is published here: a call to Triton's endpoint takes 20 to 65 µs. A sender thread takes what is new once a
second (`Recorder.take`) and hands it to `triton.adapter.MetricsEndpoint`. docs/metrics.md explains each metric.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from florence2.engine.beam import Generation
from florence2.errors import Cancelled, DeadlineExceeded, Florence2Error, InvalidRequest, QueueFull, Unavailable
from florence2.tasks import TASKS

OTHER_TASK = "other"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Kind(Enum):
    """How a metric behaves, in Prometheus' terms."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """`labels`: those it has besides `model` and the device, which all have; `buckets`: a histogram's upper bounds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS = Metric("florence2_requests_total", Kind.COUNTER, "Requests answered", ("task", "outcome"))
TOKENS = Metric("florence2_generated_tokens_total", Kind.COUNTER, "Tokens of the answers", ("task",))
STEPS = Metric("florence2_steps_total", Kind.COUNTER, "Rounds of the engine")
STEP_SECONDS = Metric("florence2_step_seconds_total", Kind.COUNTER, "Time that the engine spent in its rounds")
FAILED_STEPS = Metric("florence2_failed_steps_total", Kind.COUNTER, "Rounds that raised an error")
UP = Metric("florence2_engine_up", Kind.GAUGE, "1 while the engine's thread runs, 0 when it has died")
WAITING = Metric("florence2_waiting_requests", Kind.GAUGE, "Requests that wait for rows")
LIVE = Metric("florence2_live_requests", Kind.GAUGE, "Requests in the batch")
LIVE_ROWS = Metric("florence2_live_rows", Kind.GAUGE, "Beams in the batch, each in a row of the cache")
ROWS = Metric("florence2_rows", Kind.GAUGE, "Rows of the cache: beams that can be in the batch together")
INSIDE = Metric("florence2_inside_requests", Kind.GAUGE, "Requests between preprocess and their answer", ("stage",))
REFUSED = Metric("florence2_refused_requests_total", Kind.COUNTER, "Requests refused before any work", ("reason",))
EXPECTED_WAIT = Metric(
    "florence2_expected_wait_seconds", Kind.GAUGE, "Time until the requests that are inside will be answered"
)
KV_BYTES = Metric("florence2_kv_bytes", Kind.GAUGE, "Memory of keys and values", ("state",))
STAGE = Metric("florence2_stage_seconds", Kind.HISTOGRAM, "Time a request spent in a stage", ("stage",), SECONDS)
FIRST_TOKEN = Metric(
    "florence2_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    "From arrival in the decoder to the first token",
    (),
    SECONDS,
)
PER_TOKEN = Metric(
    "florence2_time_per_token_seconds", Kind.HISTOGRAM, "A request's mean time between tokens", (), TOKEN_SECONDS
)
ANSWER_HITS = Metric(
    "florence2_answer_hits_total", Kind.COUNTER, "Answers that came from the cache of answers", ("task",)
)
METRICS = (
    REQUESTS, TOKENS, STEPS, STEP_SECONDS, FAILED_STEPS, UP, WAITING, LIVE, LIVE_ROWS, ROWS, INSIDE, REFUSED,
    EXPECTED_WAIT, KV_BYTES, STAGE, FIRST_TOKEN, PER_TOKEN, ANSWER_HITS,
)  # fmt: skip

ENCODER_RUNS = Metric("florence2_encoder_runs_total", Kind.COUNTER, "Images that were encoded")
ENCODER_HITS = Metric("florence2_encoder_hits_total", Kind.COUNTER, "Images whose features were in the cache")
ENCODER_JOINS = Metric(
    "florence2_encoder_joins_total", Kind.COUNTER, "Images that were being encoded, or waited for it, already"
)
ENCODER_FAILURES = Metric("florence2_encoder_failures_total", Kind.COUNTER, "Images that could not be encoded")
ENCODER_SECONDS = Metric("florence2_encoder_seconds_total", Kind.COUNTER, "Time that the encoder spent in its runs")
ENCODER_WAITING = Metric("florence2_encoder_waiting_images", Kind.GAUGE, "Images that wait for the encoder")
ENCODER_CACHE_BYTES = Metric("florence2_encoder_cache_bytes", Kind.GAUGE, "Memory of the cache of image features")
ENCODER_CACHE_ENTRIES = Metric("florence2_encoder_cache_entries", Kind.GAUGE, "Entries of the cache of image features")
ENCODER_EVICTIONS = Metric(
    "florence2_encoder_evictions_total", Kind.COUNTER, "Entries that left the cache to make room for others"
)
ENCODER_METRICS = (
    ENCODER_RUNS, ENCODER_HITS, ENCODER_JOINS, ENCODER_FAILURES, ENCODER_SECONDS, ENCODER_WAITING, ENCODER_CACHE_BYTES,
    ENCODER_CACHE_ENTRIES, ENCODER_EVICTIONS,
)  # fmt: skip

# The first kind of error that fits names the outcome; an answer's outcome is its finish reason.
OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (InvalidRequest, "invalid"),
    (QueueFull, "queue_full"),
    (DeadlineExceeded, "deadline"),
    (Unavailable, "unavailable"),
    (Cancelled, "cancelled"),
    (Exception, "error"),
)


class Series(NamedTuple):
    """One line of the endpoint: a metric and the values of its labels."""

    metric: Metric
    labels: tuple[str, ...] = ()


Sample = tuple[Series, float]  # a counter's growth, a gauge's value, one observation of a histogram


@dataclass
class Times:
    """When a request reached each stage, in seconds of one clock; None until it does."""

    arrived: float
    admitted: float | None = None
    first_token: float | None = None


class Recorder:
    """Collect samples until `take`; all methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._growth: defaultdict[Series, float] = defaultdict(float)
        self._gauges: dict[Series, float] = {}
        self._observed: list[Sample] = []

    def refused(self, task: str, error: Exception) -> None:
        """Count a request that the engine never saw."""
        with self._lock:
            self._count(REQUESTS, 1, task, outcome_name(error))

    def finished(self, task: str, outcome: Generation | Florence2Error, times: Times, now: float) -> None:
        """Count a request that left the engine, answered or not, and its time in the stages that it reached."""
        with self._lock:
            self._count(REQUESTS, 1, task, outcome_name(outcome))
            self._observe(STAGE, (times.admitted or now) - times.arrived, "queue")
            if times.admitted is not None:
                self._observe(STAGE, (times.first_token or now) - times.admitted, "prefill")
            if times.first_token is not None:
                self._observe(STAGE, now - times.first_token, "decode")
                self._observe(FIRST_TOKEN, times.first_token - times.arrived)
            if isinstance(outcome, Generation):
                self._count(TOKENS, len(outcome.tokens), task)
                if times.first_token is not None and len(outcome.tokens) > 1:
                    self._observe(PER_TOKEN, (now - times.first_token) / (len(outcome.tokens) - 1))

    def repeated(self, task: str, answer: Generation) -> None:
        """Count a request whose answer was kept from an equal one, so that the engine never saw it."""
        with self._lock:
            self._count(REQUESTS, 1, task, outcome_name(answer))
            self._count(TOKENS, len(answer.tokens), task)
            self._count(ANSWER_HITS, 1, task)

    def count(self, metric: Metric, amount: float, *labels: str) -> None:
        """Let a counter grow."""
        with self._lock:
            self._count(metric, amount, *labels)

    def stepped(self, seconds: float, *, failed: bool) -> None:
        """Count a step of the engine."""
        with self._lock:
            self._count(STEPS, 1)
            self._count(STEP_SECONDS, seconds)
            self._count(FAILED_STEPS, int(failed))

    def gauge(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[Series(metric, labels)] = value

    def take(self) -> list[Sample]:
        """Return what is new since the last call."""
        with self._lock:
            samples = [*self._growth.items(), *self._gauges.items(), *self._observed]
            self._growth.clear()
            self._gauges.clear()
            self._observed.clear()
        return samples

    def _count(self, metric: Metric, amount: float, *labels: str) -> None:
        self._growth[Series(metric, labels)] += amount

    def _observe(self, metric: Metric, value: float, *labels: str) -> None:
        self._observed.append((Series(metric, labels), max(0.0, value)))


def task_label(answer_key: str | None) -> str:
    """Return a task's name, or one label for all free prompts, so that there is no series per prompt."""
    return TASKS[answer_key].name if answer_key in TASKS else OTHER_TASK


def outcome_name(outcome: Generation | Exception) -> str:
    """Return the label of an outcome."""
    if isinstance(outcome, Generation):
        return outcome.finish_reason
    return next(name for kind, name in OUTCOMES if isinstance(outcome, kind))
