"""Partial answers are sent while a request runs, and never after its answer."""

import time

import pytest

from florence2.engine.beam import Generation
from florence2.errors import DeadlineExceeded
from tests.unit.engine.worker_clients import Client, never_end, slow_down


def test_partial_answers_that_leave_slowly_are_replaced_and_not_queued(worker, engine, make_request, monkeypatch):
    """The engine goes on, and a slow client gets the newest one."""
    monkeypatch.setattr("florence2.engine.sender.FOLLOW_SECONDS", 0.0)
    slow_down(engine, monkeypatch, 0.005)
    partial, waiting = [], []

    def follow(part):
        partial.append(len(part.tokens))
        time.sleep(0.2)
        waiting.append(worker.sender._outbox._items.qsize())

    client = Client(make_request(1, num_beams=1, max_new_tokens=40), follow=follow)
    worker.submit(client.job)
    answer = client.wait()
    assert len(partial) < len(answer.tokens) / 2
    assert max(waiting) <= 2, "one partial answer and the answer"


def test_partial_answers_are_sent_until_the_answer_and_never_after(worker, engine, make_request, monkeypatch):
    """Each is a longer beginning of the answer, unfinished; the answer comes last, and counts once."""
    slow_down(engine, monkeypatch)
    partial = []
    client = Client(
        make_request(1, num_beams=1, max_new_tokens=40), follow=lambda part: partial.append((part, client.outcomes[:]))
    )
    worker.submit(client.job)
    answer = client.wait()
    worker.stop()
    assert len(partial) > 1 and not any(before for _, before in partial)
    assert all(part.tokens == answer.tokens[: len(part.tokens)] and part.finish_reason == "" for part, _ in partial)
    lengths = [len(part.tokens) for part, _ in partial]
    assert lengths == sorted(set(lengths)) and lengths[-1] < len(answer.tokens)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_partial_answer_that_cannot_be_sent_costs_no_answer(worker, make_request, error):
    """A broken stream concerns its client only."""

    def follow(_part):
        raise error

    client = Client(make_request(1, num_beams=1), follow=follow)
    worker.submit(client.job)
    assert isinstance(client.wait(), Generation)


def test_nothing_follows_an_error_on_a_stream(worker, engine, make_request, monkeypatch):
    """The error is a deadline, sent in the middle of a step."""
    slow_down(engine, monkeypatch, 0.03)
    never_end(engine, monkeypatch)
    late = []
    client = Client(
        make_request(1, num_beams=1),
        deadline=time.monotonic() + 0.3,
        follow=lambda part: late.append(part) if client.outcomes else None,
    )
    worker.submit(client.job)
    assert isinstance(client.wait(), DeadlineExceeded)
    time.sleep(0.2)
    assert not late
