"""The engine's steps: prefill in pieces between them, both backends, lower precisions."""

import numpy as np
import pytest
import torch

from florence2.engine.bart import LanguageModel, Prefill
from florence2.engine.beam import Generation
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.weights import build_language_model, create_backend
from florence2.errors import Cancelled, InternalError, InvalidRequest
from florence2_export.language import language_tensors


@pytest.fixture
def requests(make_request):
    """Requests of different lengths, beams and prompts, so that they join and leave in any order."""
    kinds = [(1, 30), (3, 9), (2, 48), (1, 3), (3, 20), (5, 48), (1, 48), (2, 5)]
    return [make_request(seed, num_beams=beams, max_new_tokens=limit) for seed, (beams, limit) in enumerate(kinds)]


def test_padded_steps_give_the_same_answers(make_engine, requests):
    """What CUDA graphs replay, run without graphs."""
    compiled = make_engine(rows=8).generate(requests)
    padded = make_engine(rows=8, backend=CudaBackend).generate(requests)
    assert [answer.tokens for answer in padded] == [answer.tokens for answer in compiled]
    assert [answer.score for answer in padded] == pytest.approx([answer.score for answer in compiled], abs=1e-5)


def test_padded_steps_come_in_few_shapes(make_engine, requests):
    """A capture takes seconds, so lengths must not each have one."""
    engine = make_engine(rows=8, backend=CudaBackend)
    engine.generate(requests * 3)
    assert len(engine.backend._steps) <= 4  # 1, 2, 4 or 8 beams; one bucket of rows and of positions


@pytest.mark.parametrize(("backend", "batches"), [(CpuBackend, 2), (CudaBackend, 1)])
def test_live_requests_get_a_token_between_the_pieces_of_a_prefill(make_engine, config, make_request, backend, batches):
    """With no time to spare, each step prefills one layer, and decoding goes on. A GPU prefills both in one batch."""
    engine = make_engine(prefill_seconds=0, backend=backend)
    first = engine.add(make_request(1, num_beams=1, max_new_tokens=48))
    while first.search.length < 3:
        engine.step()
    late = [engine.add(make_request(seed, num_beams=1)) for seed in (2, 3)]
    rounds = 0
    while late[1].search.length == 1 and not late[1].done:
        length = first.search.length
        engine.step()
        rounds += 1
        assert first.search.length == length + 1 or first.done
    assert rounds == batches * (config.text.encoder_layers + 1)  # keys and values come with one more step


def test_a_batch_of_prefills_gives_the_same_keys_and_values(make_engine, make_request):
    """Prompts of all lengths up to the longest, padded to the longest of the batch; what lies behind them stays."""
    engine = make_engine(rows=8, backend=CudaBackend)
    requests = [make_request(seed) for seed in range(7)]
    requests[3].prompt_ids[1:-1] = [5] * (engine.config.max_prompt_tokens - 2)
    batch = [Prefill(each.image_features, each.prompt_ids, slot) for slot, each in enumerate(requests)]
    cache, found = engine.backend.cache, []
    with torch.inference_mode():
        for groups in ([batch], [[each] for each in batch]):
            cache.cross_keys.fill_(7), cache.cross_values.fill_(7)
            for group in groups:
                list(engine.backend.prefill(group))
            found.append(torch.stack([cache.cross_keys, cache.cross_values]))
    torch.testing.assert_close(*found)
    for request in batch:
        length = len(request.image_features) + len(request.prompt_ids)
        assert (found[0][:, :, request.slot, :, length:] == 7).all()
    assert (found[0][:, :, 7] == 7).all()


def test_prefill_is_not_split_when_no_request_is_decoded(make_engine, make_request):
    """No request waits for a token, so there is no reason to stop."""
    engine = make_engine(prefill_seconds=0)
    sequence = engine.add(make_request(1, num_beams=1))
    engine.step()
    assert sequence.search.length == 2


def test_prefill_is_first_come_first_served(make_engine, make_request):
    """The request that was admitted first decodes first, whatever rows it got."""
    engine = make_engine(prefill_seconds=0)
    first, second = (engine.add(make_request(seed, num_beams=2)) for seed in (1, 2))
    engine.step()
    assert (first.search.length, second.search.length) == (2, 1)


@pytest.mark.parametrize("backend", [CpuBackend, CudaBackend])
def test_a_request_out_of_range_does_not_affect_its_batch(make_engine, requests, backend):
    """Numbers that are not finite, or too large, next to requests that are prefilled with them."""
    expected = make_engine(rows=32, backend=backend).generate(requests)
    engine = make_engine(rows=32, backend=backend)
    poisoned = {1: np.inf, 4: 3e38, 5: np.nan}
    for place, number in poisoned.items():
        requests[place].image_features[:] = number
    sequences = [engine.add(request) for request in requests]
    while not engine.scheduler.idle:
        engine.step()
    for place, (sequence, answer) in enumerate(zip(sequences, expected, strict=True)):
        if place in poisoned:
            assert isinstance(sequence.outcome, InvalidRequest)
        else:
            assert sequence.outcome.tokens == answer.tokens


def test_a_slot_may_change_its_owner_while_its_batch_is_prefilled(make_engine, make_request):
    """A canceled request's slot goes to the next one, whose keys and values come later."""
    wanted = make_engine(backend=CudaBackend, rows=2).generate([make_request(seed, num_beams=1) for seed in (2, 9)])
    engine = make_engine(backend=CudaBackend, rows=2, prefill_seconds=0)
    runner = engine.add(make_request(5, num_beams=1, max_new_tokens=2))
    while not runner.done:
        engine.step()
    canceled, neighbor, heir = (engine.add(make_request(seed, num_beams=1)) for seed in (1, 2, 9))
    pieces = engine._prefills
    engine._admit()
    pieces.advance()
    canceled.finish(Cancelled("canceled"))
    engine.scheduler.retire()
    engine._admit()
    assert heir.slot == canceled.slot
    while not engine.scheduler.idle:
        engine.step()
    assert [neighbor.outcome.tokens, heir.outcome.tokens] == [answer.tokens for answer in wanted]


def test_a_prefill_that_fails_midway_frees_its_rows_and_its_slot(make_engine, make_request, monkeypatch):
    """The neighbor keeps its answer."""

    def fail(*_arguments):
        yield
        raise MemoryError

    engine = make_engine(prefill_seconds=0)
    neighbor = engine.add(make_request(1, num_beams=1, max_new_tokens=20))
    engine.step()
    monkeypatch.setattr(engine.backend, "prefill", fail)
    victim = engine.add(make_request(2))
    while not engine.scheduler.idle:
        engine.step()
        engine.scheduler.check()
    assert isinstance(victim.outcome, InternalError)
    assert isinstance(neighbor.outcome, Generation)


def test_numbers_out_of_range_leave_nothing_behind(make_engine, make_request, requests):
    """The next owners of those rows and slots answer as on a new engine, next to longer requests."""
    engine = make_engine(rows=8)
    poison = [make_request(seed, num_beams=beams) for seed, beams in ((6, 3), (13, 2), (20, 3))]
    for request in poison:
        request.image_features[:] = 3e38
    sequences = [engine.add(request) for request in poison]
    while not engine.scheduler.idle:
        engine.step()
    assert all(isinstance(sequence.outcome, InvalidRequest) for sequence in sequences)
    expected = make_engine(rows=8).generate(requests)
    assert [answer.tokens for answer in engine.generate(requests)] == [answer.tokens for answer in expected]


def test_keys_out_of_range_leave_nothing_behind(config, make_request):
    """The encoder's numbers are finite, and float16 has no room for what the decoder makes of them.

    The slot's next owner reads past its own length, so what is left there must be finite.
    """
    model = LanguageModel(config, precision="float16").half().eval().requires_grad_(False)
    model.decoder.layers[-1].encoder_attn.k_proj.weight.normal_(std=3e4)
    engine = Engine(CudaBackend(model, config, 4), config)
    sequence = engine.add(make_request(1))
    while not engine.scheduler.idle:
        engine.step()
    assert isinstance(sequence.outcome, InvalidRequest)
    assert engine.backend.cache.cross_keys.isfinite().all() and engine.backend.cache.cross_values.isfinite().all()


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_a_lower_precision_scores_alike(config, make_request, precision):
    """The first choice of tokens costs about as much as in float32; a batch changes nothing."""
    torch.manual_seed(0)
    weights = {f"model.language_model.{name}": tensor for name, tensor in LanguageModel(config).state_dict().items()}
    exact, rounded = (
        Engine(create_backend(build_language_model(language_tensors(weights, name), config, name), config), config)
        for name in ("float32", precision)
    )
    requests = [make_request(seed, num_beams=1, max_new_tokens=3) for seed in range(6)]
    answers = rounded.generate(requests)
    single = [rounded.generate([request])[0] for request in requests]
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in single]
    for answer, truth in zip(answers, exact.generate(requests), strict=True):
        assert answer.log_probs[1] == pytest.approx(truth.log_probs[1], abs=0.1)
