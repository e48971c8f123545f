"""Every job gets exactly one answer: in the ordinary way, late, cancelled, refused, failed, or when the engine dies."""

import dataclasses
import os
import time

import numpy as np
import pytest

from florence2.engine.backend import DeviceLost
from florence2.engine.beam import Generation
from florence2.engine.sender import Job
from florence2.engine.worker import Worker
from florence2.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    QueueFull,
    Unavailable,
)
from tests.unit.engine.worker_clients import Client, never_end, slow_down


def test_requests_that_overlap_do_not_change_each_other_s_answers(worker, engine, make_request):
    """Batching changes nothing for clients, and each is answered once."""
    options = [(1, 48), (3, 48), (2, 7), (1, 3)]
    clients = [
        Client(make_request(seed, num_beams=beams, max_new_tokens=limit)) for seed, (beams, limit) in enumerate(options)
    ]
    for client in clients:
        worker.submit(client.job)
    together = [client.wait() for client in clients]
    worker.stop()
    assert [len(client.outcomes) for client in clients] == [1] * 4
    single = [engine.generate([client.job.request])[0] for client in clients]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in single]


def test_a_short_request_overtakes_a_long_one(worker, engine, make_request, monkeypatch):
    """In-flight batching: a late, short request does not wait for the others."""
    slow_down(engine, monkeypatch)
    never_end(engine, monkeypatch)
    long, short = Client(make_request(1, num_beams=1)), Client(make_request(2, num_beams=1, max_new_tokens=2))
    worker.submit(long.job)
    time.sleep(0.1)
    worker.submit(short.job)
    assert isinstance(short.wait(), Generation)
    assert not long.outcomes
    assert isinstance(long.wait(), Generation)


def test_a_deadline_ends_a_request_and_no_other(worker, engine, make_request, monkeypatch):
    """The late one gets an error that says so; its neighbor is answered."""
    slow_down(engine, monkeypatch)
    never_end(engine, monkeypatch)
    late = Client(make_request(1, num_beams=1), deadline=time.monotonic() + 0.1)
    neighbor = Client(make_request(2, num_beams=1))
    worker.submit(late.job)
    worker.submit(neighbor.job)
    assert isinstance(late.wait(), DeadlineExceeded)
    assert isinstance(neighbor.wait(), Generation)


def test_a_canceled_request_frees_its_rows(worker, engine, make_request, monkeypatch):
    """`cancelled` is polled until it is true, and never again after the answer."""
    slow_down(engine, monkeypatch)
    never_end(engine, monkeypatch)
    asked = []
    gone = Client(make_request(1, num_beams=1), cancelled=lambda: asked.append(len(gone.outcomes)) or True)
    worker.submit(gone.job)
    assert isinstance(gone.wait(), Cancelled)
    assert asked == [0]
    worker.submit((neighbor := Client(make_request(2, num_beams=6, max_new_tokens=2))).job)
    assert isinstance(neighbor.wait(), Generation), "all six rows are free"


def test_a_request_is_answered_when_polling_fails(worker, make_request):
    """An error of the poll is not a cancellation, and concerns no other request."""
    client = Client(make_request(1), cancelled=lambda: 1 / 0, next_poll=0)
    worker.submit(client.job)
    assert isinstance(client.wait(), Generation)


def test_a_step_that_fails_for_no_request_ends_the_engine(worker, engine, make_request, monkeypatch):
    """It would fail again and again; waiting requests get an error instead."""
    monkeypatch.setattr(engine.scheduler, "admit", lambda: 1 / 0)
    victim = Client(make_request(1))
    worker.submit(victim.job)
    assert isinstance(victim.wait(), InternalError)


def test_a_full_queue_refuses_at_once(worker, engine, make_request, monkeypatch):
    """Six rows and four waiting places: of twenty requests some are refused, all are answered."""
    slow_down(engine, monkeypatch)
    taken = []
    with pytest.raises(QueueFull):
        for seed in range(20):
            client = Client(make_request(seed, num_beams=1, max_new_tokens=4))
            worker.submit(client.job)
            taken.append(client)
    assert len(taken) >= 4
    assert all(isinstance(client.wait(), Generation) for client in taken)


def test_a_failed_step_costs_the_batch_but_not_the_engine(worker, engine, make_request, monkeypatch):
    """Out of memory, for example: the live requests get errors, the next one is answered."""
    step = engine.backend.step
    monkeypatch.setattr(engine.backend, "step", lambda *args: 1 / 0)
    victim = Client(make_request(1))
    worker.submit(victim.job)
    assert isinstance(victim.wait(), InternalError)
    monkeypatch.setattr(engine.backend, "step", step)
    survivor = Client(make_request(2))
    worker.submit(survivor.job)
    assert isinstance(survivor.wait(), Generation)


def test_a_failed_prefill_costs_that_request_only(worker, engine, make_request, monkeypatch):
    """The neighbor in the batch never notices."""
    slow_down(engine, monkeypatch)
    prefill = engine.backend.prefill
    monkeypatch.setattr(
        engine.backend, "prefill", lambda batch: 1 / 0 if len(batch[0].prompt_ids) == 3 else prefill(batch)
    )
    neighbor, victim = Client(make_request(1)), Client(make_request(7))
    assert len(victim.job.request.prompt_ids) == 3
    worker.submit(neighbor.job)
    worker.submit(victim.job)
    assert isinstance(victim.wait(), InternalError)
    assert isinstance(neighbor.wait(), Generation)


def test_a_dead_engine_answers_all_and_refuses_the_rest(worker, engine, make_request, monkeypatch):
    """Even SystemExit inside the thread leaves no request waiting."""

    def die():
        raise SystemExit

    monkeypatch.setattr(engine, "step", die)
    victim = Client(make_request(1))
    worker.submit(victim.job)
    assert isinstance(victim.wait(), InternalError)
    with pytest.raises(Unavailable, match="must be restarted"):
        for _ in range(100):
            worker.submit(Client(make_request(2)).job)
            time.sleep(0.01)


def test_a_lost_device_ends_the_process_after_all_are_answered(worker, engine, make_request, monkeypatch):
    """Every later step would fail too; a new process may find the device well again."""

    def lost():
        raise DeviceLost

    ended = []
    monkeypatch.setattr(os, "_exit", lambda code: ended.append((code, len(victim.outcomes))))
    monkeypatch.setattr(engine.backend, "step", lambda *args: 1 / 0)
    monkeypatch.setattr(engine.backend, "check_device", lost)
    victim = Client(make_request(1))
    worker.submit(victim.job)
    assert isinstance(victim.wait(), InternalError)
    worker._thread.join(10)
    assert ended == [(1, 1)]


def test_stop_answers_all_that_are_left(engine, make_request, monkeypatch):
    """Shutdown loses no request."""
    slow_down(engine, monkeypatch, 0.1)
    worker = Worker(engine)
    clients = [Client(make_request(seed)) for seed in range(4)]
    for client in clients:
        worker.submit(client.job)
    worker.stop()
    assert all(len(client.outcomes) == 1 for client in clients)
    with pytest.raises(Unavailable, match="shutting down"):
        worker.submit(clients[0].job)


def test_an_answer_that_cannot_be_sent_harms_no_other(worker, make_request):
    """The sender goes on after a client's connection broke."""
    broken = Job(make_request(1), lambda outcome: 1 / 0)
    client = Client(make_request(2))
    worker.submit(broken)
    worker.submit(client.job)
    assert isinstance(client.wait(), Generation)


def test_invalid_requests_are_refused_before_they_reach_the_engine(worker, make_request, config):
    """Direct calls to the decoder model can hold anything."""
    good = make_request(1)
    bad_features = [
        np.zeros((3, 3), np.float32),
        np.full((config.image.tokens, config.text.d_model), np.nan, np.float32),
        np.full((config.image.tokens, config.text.d_model), np.inf, np.float32),
    ]
    bad_prompts = [[], [0] * 1000, [0, -1, 2], [0, 10**6, 2]]
    hostile = [dataclasses.replace(good, image_features=features) for features in bad_features]
    hostile += [dataclasses.replace(good, prompt_ids=prompt) for prompt in bad_prompts]
    hostile.append(make_request(1, num_beams=7))
    for request in hostile:
        with pytest.raises(InvalidRequest):
            worker.submit(Client(request).job)
