"""The table of metrics is the documented one, and the recorder returns each sample once."""

from pathlib import Path

import pytest

from florence2.engine import metrics
from florence2.engine.beam import Generation
from florence2.engine.metrics import ENCODER_METRICS, METRICS, Kind, Recorder, Times
from florence2.errors import Cancelled, DeadlineExceeded, InternalError, InvalidOption, QueueFull, Unavailable
from florence2.tasks import TASKS

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_document_lists_every_metric():
    """Name, kind, labels and explanation, in the order of the table."""
    rows = [
        f"| `{m.name}` | {m.kind.value} | {', '.join(f'`{x}`' for x in m.labels)} | {m.help} |"
        for m in METRICS + ENCODER_METRICS
    ]
    table = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert table == rows


def test_names_follow_prometheus():
    """Counters end in _total, histograms in _seconds; only histograms have buckets, and they ascend."""
    for metric in METRICS + ENCODER_METRICS:
        assert metric.name.startswith("florence2_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM) <= metric.name.endswith("_seconds")
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (InvalidOption("x"), "invalid"),
        (QueueFull("x"), "queue_full"),
        (DeadlineExceeded("x"), "deadline"),
        (Unavailable("x"), "unavailable"),
        (Cancelled("x"), "cancelled"),
        (InternalError("x"), "error"),
        (MemoryError(), "error"),
        (Generation((1,), (0.0,), 0.0, "length"), "length"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_end_has_a_name(error, name):
    """What the client was told decides."""
    assert metrics.outcome_name(error) == name


def test_tasks_are_a_bounded_set_of_labels():
    """Fifteen names and one for everything else, whatever clients send."""
    labels = {metrics.task_label(key) for key in (*TASKS, None, "", "<od>", "what is this?", "<OD> ")}
    assert labels == {task.name for task in TASKS.values()} | {"other"}


def test_an_answer_from_the_cache_is_an_answer():
    """It has tokens, but was in no stage of the engine."""
    recorder = Recorder()
    recorder.repeated("od", Generation((0, 5, 2), (0.0,) * 3, 0.0, "stop"))
    assert {(series.metric.name, *series.labels): value for series, value in recorder.take()} == {
        ("florence2_requests_total", "od", "stop"): 1,
        ("florence2_generated_tokens_total", "od"): 3,
        ("florence2_answer_hits_total", "od"): 1,
    }


def test_a_request_counts_in_the_stages_it_reached():
    """Five seconds in the queue, two until the first token, three for three more tokens."""
    recorder = Recorder()
    recorder.finished("od", Generation((0, 5, 6, 2), (0.0,) * 4, 0.0, "stop"), Times(10.0, 15.0, 17.0), now=20.0)
    recorder.finished("od", QueueFull("x"), Times(10.0), now=10.5)
    samples = [
        (series.metric.name.removeprefix("florence2_"), series.labels, value) for series, value in recorder.take()
    ]
    assert sorted(samples) == sorted([
        ("requests_total", ("od", "stop"), 1),
        ("requests_total", ("od", "queue_full"), 1),
        ("generated_tokens_total", ("od",), 4),
        ("stage_seconds", ("queue",), 5.0),
        ("stage_seconds", ("queue",), 0.5),
        ("stage_seconds", ("prefill",), 2.0),
        ("stage_seconds", ("decode",), 3.0),
        ("time_to_first_token_seconds", (), 7.0),
        ("time_per_token_seconds", (), 1.0),
    ])  # fmt: skip
    assert recorder.take() == [], "a sample is returned once"
