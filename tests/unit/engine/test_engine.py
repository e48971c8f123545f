"""The engine's steps: prefill in pieces between them, both backends, lower precisions."""

import pytest
import torch

from florence2.engine.bart import LanguageModel
from florence2.engine.beam import Generation
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.weights import build_language_model, create_backend
from florence2.errors import InternalError, InvalidRequest
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


def test_live_requests_get_a_token_between_the_pieces_of_a_prefill(make_engine, config, make_request):
    """With no time to spare, each step prefills one layer, and decoding goes on."""
    engine = make_engine(prefill_seconds=0)
    first = engine.add(make_request(1, num_beams=1, max_new_tokens=48))
    while first.search.length < 3:
        engine.step()
    late = engine.add(make_request(2, num_beams=1))
    rounds = 0
    while late.search.length == 1 and not late.done:
        length = first.search.length
        engine.step()
        rounds += 1
        assert first.search.length == length + 1 or first.done
    assert rounds == config.text.encoder_layers + 1  # its keys and values come with one more step


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
    """The encoder's numbers are finite, and float16 has no room for what the decoder makes of them."""
    model = LanguageModel(config, precision="float16").half().eval().requires_grad_(False)
    model.decoder.layers[-1].encoder_attn.k_proj.weight.normal_(std=3e4)
    engine = Engine(CudaBackend(model, config, 4), config)
    sequence = engine.add(make_request(1))
    while not engine.scheduler.idle:
        engine.step()
    assert isinstance(sequence.outcome, InvalidRequest)
    assert not engine.backend.cache.cross_keys.any() and not engine.backend.cache.cross_values.any()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
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
