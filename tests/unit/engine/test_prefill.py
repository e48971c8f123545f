"""Prefill of admitted requests: batches, order, errors and cancellations, with a backend that computes nothing."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.engine.prefill import PrefillQueue
from florence2.engine.sequence import Request, Sequence
from florence2.errors import Cancelled, InternalError, InvalidRequest

LAYERS = 3


class Backend:
    """Note the batches. A prompt [1] breaks at once, [2] in the second layer, and [3] has numbers out of range."""

    def __init__(self, prefill_batch):
        self.prefill_batch = prefill_batch
        self.batches = []

    def prefill(self, requests):
        self.batches.append([request.slot for request in requests])
        kinds = [request.prompt_ids[0] for request in requests]
        if 1 in kinds:
            raise MemoryError
        return self.pieces(kinds)

    def pieces(self, kinds):
        for layer in range(LAYERS):
            if layer == 1 and 2 in kinds:
                raise MemoryError
            yield
        return [kind != 3 for kind in kinds]


def sequences_of(kinds):
    made = [Sequence(Request(None, [kind], None), SimpleNamespace()) for kind in kinds]
    for slot, sequence in enumerate(made):
        sequence.slot = slot
    return made


def queue_of(kinds, prefill_batch=8):
    backend, sequences = Backend(prefill_batch), sequences_of(kinds)
    queue = PrefillQueue(backend)
    for sequence in sequences:
        queue.add(sequence)
    return queue, backend, sequences


def outcomes(sequences):
    return ["ready" if each.prefilled else type(each.outcome) if each.done else "waiting" for each in sequences]


def test_a_batch_holds_what_is_admitted_when_it_begins():
    """In order of admission, as many as the backend takes; those that come later wait for the next batch."""
    queue, backend, sequences = queue_of([0] * 5, prefill_batch=3)
    queue.advance()
    late = sequences_of([0])[0]
    queue.add(late)
    while queue.advance():
        pass
    assert backend.batches == [[0, 1, 2], [3, 4, 0]]
    assert outcomes([*sequences, late]) == ["ready"] * 6


def test_a_batch_takes_a_piece_for_each_layer_and_one_to_write():
    queue, _, sequences = queue_of([0, 0])
    for _ in range(LAYERS):
        assert queue.advance() and outcomes(sequences) == ["waiting"] * 2
    assert queue.advance() and outcomes(sequences) == ["ready"] * 2
    assert not queue.advance()


@pytest.mark.parametrize(("kind", "error"), [(1, InternalError), (2, InternalError), (3, InvalidRequest)])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("prefill_batch", [1, 2, 8])
def test_an_error_ends_one_request(kind, error, place, prefill_batch):
    """Wherever it is in its batch. The others are tried again on their own."""
    kinds = [0] * 4
    kinds[place] = kind
    queue, _, sequences = queue_of(kinds, prefill_batch)
    while queue.advance():
        pass
    assert outcomes(sequences) == [error if kind else "ready" for kind in kinds]


def test_a_request_that_is_canceled_stops_nothing():
    """Before its batch begins it is left out; later, its neighbors go on."""
    queue, backend, sequences = queue_of([0] * 4, prefill_batch=2)
    queue.advance()
    sequences[0].finish(Cancelled())
    sequences[2].finish(Cancelled())
    while queue.advance():
        pass
    assert backend.batches == [[0, 1], [3]]
    assert [sequence.prefilled for sequence in sequences[1::2]] == [True, True]


def test_a_batch_of_which_no_request_is_left_is_dropped():
    queue, backend, sequences = queue_of([0] * 3, prefill_batch=2)
    queue.advance()
    for sequence in sequences[:2]:
        sequence.finish(Cancelled())
    queue.advance()
    assert backend.batches == [[0, 1], [2]]
    assert not any(sequence.prefilled for sequence in sequences[:2])


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5), st.lists(st.integers(0, 11), max_size=30))
def test_every_request_gets_ready_or_ends(kinds, prefill_batch, canceled):
    """Whatever is canceled meanwhile, one after each piece; requests keep their order of admission in each batch."""
    queue, backend, sequences = queue_of(kinds, prefill_batch)
    cancellations = iter(canceled)
    for _ in range(len(kinds) * 2 * (LAYERS + 1) + 1):
        if not queue.advance():
            break
        place = next(cancellations, None)
        if place is not None and place < len(kinds) and not (sequences[place].done or sequences[place].prefilled):
            sequences[place].finish(Cancelled())
    assert not queue.advance()
    errors = ("ready", InternalError, InternalError, InvalidRequest)
    for kind, sequence in zip(kinds, sequences, strict=True):
        assert isinstance(sequence.outcome, Cancelled) or outcomes([sequence]) == [errors[kind]]
    assert all(batch == sorted(batch) and len(batch) <= prefill_batch for batch in backend.batches)
