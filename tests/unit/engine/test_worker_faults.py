"""The worker under random arrivals, deadlines, cancellations and failures, with an engine that has no tensors."""

import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from florence2.engine import sender as sender_module
from florence2.engine import worker as worker_module
from florence2.engine.worker import Worker
from florence2.errors import Cancelled, DeadlineExceeded, InternalError, QueueFull, Unavailable
from tests.unit.engine.planned_requests import ROWS, WAITING, Engine, Plan, submit, wait_for_answers

TROUBLES = ["", "", "", "add", "prefill", "step", "late", "gone", "unanswerable", "cannot be polled"]
ALLOWED = {
    "add": InternalError, "prefill": InternalError, "step": InternalError, "late": DeadlineExceeded, "gone": Cancelled,
}  # fmt: skip
plans = st.builds(Plan, st.integers(1, ROWS), st.integers(1, 40), st.sampled_from(TROUBLES))
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(sender_module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(sender_module, "WAITING_POLL_SECONDS", 0.001)


@quick
@given(st.lists(st.tuples(plans, st.floats(0, 0.001)), max_size=25))
def test_every_request_is_answered_once_and_by_its_own_fate(arrivals):
    """A request's answer depends on its own troubles, and on a step that failed while it was in the batch."""
    engine = Engine()
    worker = Worker(engine)
    all_plans = [plan for plan, _ in arrivals]
    for plan, pause in arrivals:
        submit(worker, plan)
        time.sleep(pause)
    wait_for_answers(all_plans)
    worker.stop()
    assert engine.broken is None
    assert engine.scheduler.idle, "no row is lost"
    for plan in all_plans:
        [outcome] = plan.outcomes
        assert plan.polled_after_answer == 0
        if isinstance(outcome, QueueFull):
            continue
        if isinstance(outcome, InternalError) and id(plan) in engine.hurt:
            continue
        assert outcome == plan.expected() or type(outcome) is ALLOWED.get(plan.trouble)


@quick
@given(st.lists(plans, min_size=1, max_size=12), st.sampled_from(["stop", "die"]), st.floats(0, 0.003))
def test_every_request_is_answered_once_when_the_engine_ends(all_plans, end, when):
    """Stopped or dead in the middle: no job is forgotten or answered twice, and new ones are refused at once."""
    engine = Engine()
    worker = Worker(engine)
    threads = [threading.Thread(target=submit, args=(worker, plan)) for plan in all_plans]
    for thread in threads:
        thread.start()
    time.sleep(when)
    if end == "die":
        all_plans.append(Plan(1, 9, "die"))
        while not submit(worker, all_plans[-1]):  # the queue was full
            all_plans[-1].outcomes.clear()
            time.sleep(0.001)
    else:
        worker.stop()
    for thread in threads:
        thread.join()
    if end == "die":
        late = Plan(1, 9, "die")  # the first may have gone with a step that failed
        while submit(worker, late):
            wait_for_answers([late])
            late = Plan(1, 9, "die")
    wait_for_answers(all_plans)
    worker.stop()
    assert all(len(plan.outcomes) == 1 and not plan.polled_after_answer for plan in all_plans)
    assert not submit(worker, Plan(1, 1))


def test_a_stop_does_not_wait_for_a_long_step(monkeypatch):
    """Clients get an error at once; what the step brings afterwards is dropped."""
    monkeypatch.setattr(worker_module, "STOP_SECONDS", 0.1)
    engine, plan, running, release = Engine(), Plan(1, 1), threading.Event(), threading.Event()
    step = engine.step
    engine.step = lambda: (running.set(), release.wait(10), step())[2]
    worker = Worker(engine)
    submit(worker, plan)
    assert running.wait(10)
    worker.stop()
    assert [type(outcome) for outcome in plan.outcomes] == [Unavailable]
    release.set()
    worker._thread.join(10)
    assert len(plan.outcomes) == 1


@pytest.mark.parametrize("trouble", ["late", "gone", "too long", "cannot wait"])
def test_time_runs_out_even_while_a_step_hangs(trouble):
    """The client gets an error in time; the rows are freed when the step is over."""
    engine, running, release = Engine(), threading.Event(), threading.Event()
    step = engine.step
    engine.step = lambda: (running.set(), release.wait(10), step())[2]
    worker = Worker(engine, max_seconds=0.05 if trouble == "too long" else 60)
    plan = Plan(1, 10**9, trouble)
    submit(worker, plan)
    wait_for_answers([plan])
    assert running.is_set() and not release.is_set()
    assert type(plan.outcomes[0]) is {"gone": Cancelled, "cannot wait": QueueFull}.get(trouble, DeadlineExceeded)
    release.set()
    neighbor = Plan(ROWS, 3)
    submit(worker, neighbor)
    wait_for_answers([neighbor])
    worker.stop()
    assert neighbor.outcomes == [neighbor.expected()] and len(plan.outcomes) == 1 and engine.scheduler.idle


def test_a_full_queue_refuses_even_while_a_step_runs():
    """Jobs on their way to the engine count as well: memory stays bounded however long a step takes."""
    engine, running, release = Engine(), threading.Event(), threading.Event()
    step = engine.step
    engine.step = lambda: (running.set(), release.wait(10), step())[2]
    worker = Worker(engine)
    first = Plan(1, 1)
    submit(worker, first)
    assert running.wait(10)
    crowd = [Plan(1, 1) for _ in range(3 * WAITING)]
    taken = [submit(worker, plan) for plan in crowd]
    assert sum(taken) <= WAITING
    release.set()
    wait_for_answers([first, *crowd])
    worker.stop()


def test_a_request_that_waits_too_long_for_rows_is_refused():
    """A live one of the same age goes on."""
    engine = Engine()
    step = engine.step
    engine.step = lambda: (time.sleep(0.001), step())[1]
    worker = Worker(engine)
    live, waiting = Plan(ROWS, 300, "cannot wait"), Plan(1, 3, "cannot wait")
    submit(worker, live)
    submit(worker, waiting)
    wait_for_answers([live, waiting])
    worker.stop()
    assert live.outcomes == [live.expected()] and [type(outcome) for outcome in waiting.outcomes] == [QueueFull]


def test_no_request_stays_longer_than_the_server_allows():
    """An abandoned ensemble request is ended by the server's own limit, which says so."""
    engine, plan = Engine(), Plan(1, 10**9)
    worker = Worker(engine, max_seconds=0.05)
    submit(worker, plan)
    wait_for_answers([plan])
    worker.stop()
    assert isinstance(plan.outcomes[0], DeadlineExceeded)
    assert "0.05 seconds this server allows" in str(plan.outcomes[0])


def test_the_recorder_counts_every_request_once():
    """Requests by outcome add up to what was sent, tokens to what was answered; gauges end at nothing."""
    published = []
    engine = Engine()
    worker = Worker(engine, publish=published.extend)
    all_plans = [Plan(1, 5), Plan(2, 7), Plan(3, 9, "prefill"), Plan(1, 10**9, "gone"), Plan(1, 4, "unanswerable")]
    for plan in all_plans:
        submit(worker, plan)
    wait_for_answers(all_plans)
    worker.stop()
    totals: dict[tuple, float] = {}
    for (metric, labels), value in published:
        key = (metric.name.removeprefix("florence2_"), *labels)
        totals[key] = value if metric.kind.value == "gauge" else totals.get(key, 0) + value
    assert totals["requests_total", "other", "stop"] == 3
    assert totals["requests_total", "other", "error"] == 1
    assert totals["requests_total", "other", "cancelled"] == 1
    assert totals["generated_tokens_total", "other"] == 5 + 7 + 4
    assert totals["live_requests",] == totals["waiting_requests",] == totals["live_rows",] == 0
    assert totals["engine_up",] == 0
    observed = [labels for (metric, labels), _ in published if metric.name == "florence2_stage_seconds"]
    assert observed.count(("queue",)) == 5 and observed.count(("decode",)) >= 3


def test_a_publisher_that_fails_costs_no_answer():
    """Metrics are worth less than answers."""
    worker, plan = Worker(Engine(), publish=lambda samples: 1 / 0), Plan(1, 3)
    submit(worker, plan)
    wait_for_answers([plan])
    worker.stop()
    assert plan.outcomes == [plan.expected()]
