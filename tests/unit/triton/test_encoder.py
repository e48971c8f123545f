"""Equal images are encoded once, whenever they come; errors reach all that wait and are not kept."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from florence2.engine.metrics import ENCODER_METRICS
from florence2.errors import InternalError, QueueFull, Unavailable
from florence2.triton import encoder as module
from tests.unit.triton.encoding import ENTRY, SECONDS, FakeSession, Requests, result


@pytest.fixture
def session() -> Iterator[FakeSession]:
    made = FakeSession()
    yield made
    made.go_on.set()


def test_an_image_is_encoded_once(session):
    """Those that come while it is encoded wait for it, and later ones are answered before `submit` returns."""
    session.hold()
    requests = Requests(session)
    first = requests.send(1)
    session.wait_until_it_runs()
    joined = [requests.send(1) for _ in range(3)]
    session.go_on.set()
    assert [result(inbox) for inbox in (first, *joined)] == [10] * 4
    late = requests.send(1)
    assert not late.empty() and result(late) == 10
    metrics = requests.metrics()
    assert session.runs == [[1]]
    assert (metrics["runs_total"], metrics["joins_total"], metrics["hits_total"]) == (1, 3, 1)


def test_known_images_are_answered_while_another_is_encoded(session):
    requests = Requests(session)
    assert result(requests.send(1)) == 10
    session.wait_until_it_runs()
    session.hold()
    requests.send(2)
    session.wait_until_it_runs()
    assert result(requests.send(1)) == 10, "the other one is still being encoded"


def test_requests_for_an_image_in_the_queue_share_a_run(session):
    """The image keeps its place in the queue."""
    session.hold()
    requests = Requests(session)
    inboxes = [requests.send(1)]
    session.wait_until_it_runs()
    inboxes += [requests.send(image) for image in (2, 3, 2)]
    session.go_on.set()
    assert [result(inbox) for inbox in inboxes] == [10, 20, 30, 20]
    assert session.runs == [[1], [2], [3]]


@pytest.mark.parametrize("entries", [0, 100])
def test_a_failure_reaches_all_that_wait_and_is_not_kept(session, entries):
    """The next request tries again. Nothing of the exception is in the message."""
    session.bad = {1}
    session.hold()
    requests = Requests(session, entries=entries)
    inboxes = [requests.send(1)]
    session.wait_until_it_runs()
    inboxes += [requests.send(1) for _ in range(3)]
    session.go_on.set()
    for inbox in inboxes:
        error = result(inbox)
        assert isinstance(error, InternalError) and "memory" not in str(error)
    session.bad = set()
    assert result(requests.send(1)) == 10
    metrics = requests.metrics()
    assert (metrics["runs_total"], metrics["failures_total"], metrics["joins_total"]) == (2, 1, 3)


def test_without_a_cache_requests_still_share_a_run(session):
    session.hold()
    requests = Requests(session, entries=0)
    inboxes = [requests.send(1)]
    session.wait_until_it_runs()
    inboxes.append(requests.send(1))
    session.go_on.set()
    assert [result(inbox) for inbox in inboxes] == [10, 10]
    assert result(requests.send(1)) == 10
    assert session.runs == [[1], [1]]


def test_a_small_cache_forgets(session):
    """Metrics say how often, and what it holds."""
    requests = Requests(session, entries=2)
    for image in (1, 2, 1, 3, 1, 2):
        assert result(requests.send(image)) == 10 * image
    assert session.runs == [[1], [2], [3], [2]]
    metrics = requests.metrics()
    assert (metrics["evictions_total"], metrics["cache_entries"], metrics["cache_bytes"]) == (2, 2, 2 * ENTRY)


def test_what_waits_forms_batches_of_distinct_images(session):
    """None has more than so many images. What the cache keeps of a batch is a copy, not a view that keeps all of it."""
    session.hold()
    requests = Requests(session, batch=3)
    inboxes = [requests.send(1)]
    session.wait_until_it_runs()
    inboxes += [requests.send(image) for image in (2, 3, 2, 4, 5)]
    session.go_on.set()
    assert [result(inbox) for inbox in inboxes] == [10, 20, 30, 20, 40, 50]
    assert session.runs == [[1], [2, 3, 4], [5]]
    assert requests.send(3).get(timeout=SECONDS)["Y"].base is None
    assert requests.metrics()["runs_total"] == 5


def test_a_client_s_batch_counts_as_its_images(session):
    """Batches are not split, even where they are larger than a run of ours."""
    session.hold()
    requests = Requests(session, batch=4)
    requests.send(1)
    session.wait_until_it_runs()
    inboxes = []
    for images in ([2, 3, 4], [5, 6], [7], list(range(10, 20))):
        inboxes.append(queue.Queue())
        requests.encoder.submit(tuple(images), {"X": np.array(images)[:, None]}, inboxes[-1].put, images=len(images))
    session.go_on.set()
    assert [inbox.get(timeout=SECONDS)["Y"].reshape(-1).tolist() for inbox in inboxes] == [
        [20, 30, 40], [50, 60], [70], [10.0 * number for number in range(10, 20)],
    ]  # fmt: skip
    assert session.runs == [[1], [2, 3, 4], [5, 6, 7], list(range(10, 20))]
    assert requests.metrics()["runs_total"] == 17


def test_one_bad_image_fails_by_itself(session):
    """The others of its batch are encoded one by one."""
    session.bad = {3}
    session.hold()
    requests = Requests(session, batch=4)
    inboxes = [requests.send(1)]
    session.wait_until_it_runs()
    inboxes += [requests.send(image) for image in (2, 3, 4)]
    session.go_on.set()
    results = [result(inbox) for inbox in inboxes]
    assert [results[place] for place in (0, 1, 3)] == [10, 20, 40] and isinstance(results[2], InternalError)
    metrics = requests.metrics()
    assert (metrics["runs_total"], metrics["failures_total"], metrics["cache_entries"]) == (4, 1, 3)


def test_an_image_that_may_not_be_encoded_is_refused(session):
    """At once, or when it is its turn; known images are never refused, and one that is joined is asked about again."""
    session.hold()
    requests = Requests(session)
    asked: list[int] = []
    answers = iter([True, False, True, True])

    def allowed(waiting: int) -> bool:
        asked.append(waiting)
        return next(answers)

    requests.send(1)
    session.wait_until_it_runs()
    with pytest.raises(QueueFull, match="busy with requests of the ensemble"):
        requests.send(2, lambda waiting: False)
    refused, taken = requests.send(3, allowed), requests.send(4)
    joined = requests.send(3)
    session.go_on.set()
    assert isinstance(result(refused), QueueFull) and isinstance(result(joined), QueueFull)
    assert result(taken) == 40 and asked == [0, 0]
    assert result(requests.send(3, allowed)) == 30 and asked == [0, 0, 0, 0]
    assert result(requests.send(3, lambda waiting: False)) == 30


def test_a_request_that_cannot_be_answered_harms_no_other(session):
    """Its client has left, and Triton refuses the response. It may even be the one that started the run."""
    session.hold()
    requests = Requests(session)

    def gone(outcome):
        raise RuntimeError("the response sender is closed")

    requests.encoder.submit(1, {"X": np.array([[1]])}, gone)
    session.wait_until_it_runs()
    inboxes = [requests.send(1)]
    requests.encoder.submit(1, {"X": np.array([[1]])}, gone)
    inboxes.append(requests.send(1))
    session.go_on.set()
    assert [result(inbox) for inbox in inboxes] == [10, 10]
    assert result(requests.send(2)) == 20


def test_stop_lets_the_run_end_and_answers_the_rest(session):
    """Later requests are refused, except for images that are known."""
    session.hold()
    requests = Requests(session)
    running = requests.send(1)
    session.wait_until_it_runs()
    waiting = requests.send(2)
    stopping = threading.Thread(target=requests.encoder.stop)
    stopping.start()
    assert isinstance(result(waiting), Unavailable)
    with pytest.raises(Unavailable, match="shutting down"):
        requests.send(3)
    session.go_on.set()
    stopping.join()
    assert result(running) == 10 and result(requests.send(1)) == 10
    assert session.runs == [[1]]


def test_stop_answers_even_what_never_ends(session, monkeypatch):
    """Every request gets one response, also when the run ends after all."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.01)
    session.hold()
    requests = Requests(session)
    running = requests.send(1)
    session.wait_until_it_runs()
    requests.encoder.stop()
    assert isinstance(result(running), Unavailable)
    session.go_on.set()
    requests.encoder._worker.join(SECONDS)
    assert running.empty()


def test_a_dead_thread_answers_all(session):
    """What waits gets an error, and so do later requests."""
    session.hold()
    requests = Requests(session)
    requests.send(1)
    session.wait_until_it_runs()

    def broken(waiting: int) -> bool:
        if waiting == 0 and not session.go_on.is_set():
            return True
        raise SystemExit

    inboxes = [requests.send(2, broken), requests.send(3)]
    session.go_on.set()
    assert all(isinstance(result(inbox), InternalError) for inbox in inboxes)
    with pytest.raises(Unavailable, match="must be restarted"):
        requests.send(4)


def test_every_metric_is_published_from_the_start(session):
    assert set(Requests(session).metrics()) == {m.name.removeprefix("florence2_encoder_") for m in ENCODER_METRICS}


@pytest.mark.parametrize(("batch", "entries"), [(1, 100), (1, 0), (4, 3)])
def test_many_threads_get_the_responses_to_their_requests(session, batch, entries):
    """Runs, hits and joins add up. With enough memory, each image has one run."""
    session.bad = {7}
    requests = Requests(session, batch, entries)
    wrong: list[object] = []

    def client(seed: int) -> None:
        for image in random.Random(seed).choices(range(10), k=60):
            found = result(requests.send(image))
            if isinstance(found, InternalError) != (image == 7) or (image != 7 and found != 10 * image):
                wrong.append((image, found))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics = requests.metrics()
    assert not wrong
    assert metrics["runs_total"] + metrics["hits_total"] + metrics["joins_total"] == 480
    assert metrics["cache_entries"] == min(entries, 9)
    if entries == 100:
        assert all(session.runs.count([image]) == 1 for image in range(10) if image != 7)
