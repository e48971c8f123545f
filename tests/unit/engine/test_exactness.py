"""The engine's tokens and scores are those of transformers, for all combinations of options, in a batch or not.

Checkpoints with random weights are the harder test: their answers wander, repeat themselves and end anywhere.
"""

import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from transformers import Florence2ForConditionalGeneration

from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.engine.weights import build_language_model, create_backend
from florence2_export.checkpoint import read_checkpoint
from florence2_export.language import language_tensors
from tests.reference import DEMO
from tests.unit.engine.transformers_reference import Reference, random_checkpoint

MAX_NEW_TOKENS = 40
ROUNDINGS = 10  # of the features, where rounding decides
OPTIONS = [
    dict(num_beams=beams, no_repeat_ngram_size=ngram, length_penalty=penalty, early_stopping=early)
    for beams, ngram, penalty, early in itertools.product((1, 2, 3, 5), (0, 3), (0.6, 1.0, 1.5), (True, False))
    if beams > 1 or (penalty, early) == (1.0, True)  # greedy knows neither
]


RULES = [
    dict(num_beams=beams, no_repeat_ngram_size=ngram, min_new_tokens=at_least, repetition_penalty=penalty)
    for beams, ngram, at_least, penalty in itertools.product((1, 2, 5), (0, 3), (0, 5, 40), (0.7, 1.0, 1.3, 4.0))
]


SAMPLED = [
    dict(temperature=0.7),
    dict(temperature=1.0, top_k=0),
    dict(temperature=1.7, top_k=5, no_repeat_ngram_size=0),
    dict(top_p=0.5, min_new_tokens=12, repetition_penalty=1.3),
    dict(temperature=0.4, top_k=0, top_p=0.9, repetition_penalty=0.7, no_repeat_ngram_size=0),
    dict(temperature=2.0, top_k=30, top_p=0.8, no_repeat_ngram_size=0, suppress_repeated_bos=True),
]


GEOMETRIES = {
    "demo": None,
    "wide": dict(d_model=96, encoder_layers=1, decoder_layers=2, encoder_attention_heads=6, decoder_attention_heads=6),
    "deep": dict(d_model=32, encoder_layers=3, decoder_layers=4, encoder_attention_heads=2, decoder_attention_heads=4),
    "scaled": dict(d_model=64, decoder_layers=1, scale_embedding=True),
    "untied": dict(d_model=32, decoder_layers=1, untied=True),
}


@pytest.fixture(scope="module", params=GEOMETRIES)
def reference(request, tmp_path_factory) -> Reference:
    text = GEOMETRIES[request.param]
    directory = DEMO if text is None else random_checkpoint(tmp_path_factory.mktemp(request.param), 1, **text)
    model = Florence2ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    return Reference(model.eval(), read_checkpoint(str(directory)))


def request_of(reference: Reference, seed: int, /, **options) -> Request:
    config = reference.checkpoint.config
    prompt = np.random.default_rng(seed).integers(4, config.tokens.first_location, 3 + seed % 11).tolist()
    complete = config.generation_options(**{"max_new_tokens": MAX_NEW_TOKENS, **options})
    return Request(reference.features(seed), [0, *prompt, 2], complete)


def assert_equal(reference: Reference, request: Request, generation) -> None:
    """Compare with transformers' answer.

    Random weights sometimes have two candidates that differ by a few roundings, 6e-6 in one case. Then the padded step,
    which rounds differently in a batch, may take the other one. That is transformers' answer too if the image differs
    by no more than roundings.
    """
    for noise in range(ROUNDINGS):
        tokens, score = reference.generate(rounded_differently(request, noise))
        if list(generation.tokens) == tokens:
            break
    assert list(generation.tokens) == tokens, request.options
    if score is not None:
        assert generation.score == pytest.approx(score, abs=1e-4)


def rounded_differently(request: Request, noise: int) -> Request:
    """Return the request with features that differ by 1e-5 of themselves; the same for a noise of 0."""
    features = request.image_features
    changes = 1e-5 * (noise > 0) * np.random.default_rng(noise).standard_normal(features.shape)
    return dataclasses.replace(request, image_features=(features * (1 + changes)).astype(np.float32))


@pytest.mark.parametrize("backend", [CpuBackend, CudaBackend])
def test_every_combination_of_options_answers_as_transformers_in_one_busy_batch(reference, backend):
    """Requests queue, join late and leave early."""
    requests = [request_of(reference, seed, **options) for seed, options in enumerate(OPTIONS)]
    engine = reference.engine(backend)
    for request, generation in zip(requests, engine.generate(requests), strict=True):
        assert_equal(reference, request, generation)


@pytest.mark.parametrize("backend", [CpuBackend, CudaBackend])
def test_min_new_tokens_and_repetition_penalty_are_those_of_transformers(reference, backend):
    """Both rules together with the ban on n-grams, for requests that share a batch with others of other rules."""
    requests = [request_of(reference, seed, **options) for seed, options in enumerate(RULES)]
    for request, generation in zip(requests, reference.engine(backend).generate(requests), strict=True):
        assert len(generation.tokens) > request.options.min_new_tokens - 1
        assert_equal(reference, request, generation)


@pytest.mark.parametrize("backend", [CpuBackend, CudaBackend])
def test_log_masses_are_the_models_own_probabilities_of_the_answer(reference, backend):
    """Token by token, through beams that moved, and whatever rules forbid, penalize or force."""
    rules = [rule for rule in RULES if rule["repetition_penalty"] in (1.0, 1.3)]
    requests = [request_of(reference, seed, **options) for seed, options in enumerate(rules)]
    for request, generation in zip(requests, reference.engine(backend).generate(requests), strict=True):
        expected = reference.log_masses(request, generation.tokens)
        assert list(generation.log_masses) == pytest.approx(expected, abs=2e-3), request.options


class Quantiles:
    """A `torch.multinomial` that takes the quantiles which the engine draws with a seed.

    `sure`: how many tokens from the first on are so far from another quantile that rounding cannot have chosen them.
    """

    def __init__(self, seed: int, likely_first: bool) -> None:
        self._random, self._likely_first = random.Random(seed), likely_first
        self._doubt, self.sure = False, 0

    def __call__(self, probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        order = probs[0].argsort(descending=True) if self._likely_first else torch.arange(probs.shape[1])
        sums, draw = probs[0, order].double().cumsum(0), self._random.random()
        self._doubt |= bool((sums - draw).abs().min() < 1e-5)
        self.sure += not self._doubt
        return order[(sums <= draw).sum()][None, None]


@pytest.mark.parametrize("backend", [CpuBackend, CudaBackend])
def test_transformers_draws_the_same_tokens_at_the_same_quantiles(reference, backend, monkeypatch):
    """With every rule and warper in its place, next to greedy and beam searches; and LOG_PROBS are its scores."""
    requests = [request_of(reference, seed, seed=seed, max_new_tokens=15, **each) for seed, each in enumerate(SAMPLED)]
    others = [request_of(reference, 9, num_beams=beams, max_new_tokens=15) for beams in (1, 3)]
    generations = reference.engine(backend).generate([*requests, *others])
    for request, generation in zip(others, generations[len(requests) :], strict=True):
        assert_equal(reference, request, generation)
    compared = 0
    for request, generation in zip(requests, generations, strict=False):
        quantiles = Quantiles(request.options.seed, likely_first=backend is CudaBackend)
        monkeypatch.setattr(torch, "multinomial", quantiles)
        theirs = reference.output(request)
        assert list(generation.tokens[: quantiles.sure]) == theirs.sequences[0, 1 : 1 + quantiles.sure].tolist()
        scores = reference.model.compute_transition_scores(theirs.sequences, theirs.scores, normalize_logits=True)[0]
        assert generation.log_probs[: quantiles.sure] == pytest.approx(scores[: quantiles.sure].tolist(), abs=1e-3)
        compared += quantiles.sure
    assert compared > 40


@pytest.mark.parametrize("backend", [CpuBackend, CudaBackend])
def test_suppress_repeated_bos_frees_a_checkpoint_that_repeats_bos_forever(tmp_path, backend):
    """Stock checkpoints do without NO_REPEAT_NGRAM_SIZE, and so does transformers."""
    directory = random_checkpoint(tmp_path, 3, d_model=32, decoder_layers=1, untied=True)
    model = Florence2ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.language_model.decoder.layers[-1].final_layer_norm.bias.fill_(1)  # in all hidden states, for <s>
        model.lm_head.weight[0] = 2
    model.save_pretrained(directory)
    reference = Reference(model, read_checkpoint(str(directory)))
    kinds = [dict(num_beams=1), dict(num_beams=3), dict(temperature=1.0, top_k=3, seed=1)]
    stuck = [request_of(reference, 1, no_repeat_ngram_size=0, **kind) for kind in kinds]
    free = [request_of(reference, 1, no_repeat_ngram_size=0, suppress_repeated_bos=True, **kind) for kind in kinds]
    for generation in reference.engine(backend).generate(stuck):
        assert generation.tokens == (0,) * (MAX_NEW_TOKENS - 1) + (2,)
    for request, generation in zip(free, reference.engine(backend).generate(free), strict=True):
        assert (0, 0) not in itertools.pairwise(generation.tokens) and len(set(generation.tokens)) > 5
        if not request.options.temperature:
            assert_equal(reference, request, generation)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
def test_an_answer_is_cut_where_transformers_cuts_it(reference, max_new_tokens):
    """The limit counts the forced `<s>` and `</s>`."""
    for beams in (1, 3):
        request = request_of(reference, 5, num_beams=beams, max_new_tokens=max_new_tokens)
        [generation] = reference.engine().generate([request])
        assert len(generation.tokens) <= max_new_tokens
        assert_equal(reference, request, generation)


def test_a_sequence_may_fill_every_position(reference):
    """Exactly max_positions tokens can be generated; the last one is never fed back. Long hypotheses tie in float32."""
    limit = reference.checkpoint.config.max_new_tokens
    for beams, ngram in ((1, 0), (3, 1)):
        request = request_of(reference, 3, num_beams=beams, no_repeat_ngram_size=ngram, max_new_tokens=limit)
        [generation] = reference.engine().generate([request])
        assert_equal(reference, request, generation)


def test_a_late_request_changes_nothing_for_the_early_one(reference):
    """The invariants hold after every step, and both answers are the same without the other request."""
    early, late = (request_of(reference, seed, num_beams=3) for seed in (1, 2))
    single = [reference.engine().generate([request])[0] for request in (early, late)]
    engine = reference.engine()
    sequences = [engine.add(early)]
    for step in range(200):
        if step == 2:
            sequences.append(engine.add(late))
        engine.step()
        engine.scheduler.check()
    assert [sequence.outcome.tokens for sequence in sequences] == [generation.tokens for generation in single]


def test_log_probs_are_transformers_transition_scores(reference):
    """Forced tokens count zero."""
    request = request_of(reference, 4, num_beams=3)
    [generation] = reference.engine().generate([request])
    theirs = reference.output(request)
    scores = reference.model.compute_transition_scores(theirs.sequences, theirs.scores, theirs.beam_indices)[0]
    assert list(generation.log_probs) == pytest.approx(scores[: len(generation.tokens)].tolist(), abs=1e-3)
    assert generation.log_probs[0] == 0.0


@pytest.mark.parametrize("beams", [1, 3])
def test_the_score_is_the_mean_of_the_log_probs(reference, beams):
    [generation] = reference.engine().generate([request_of(reference, 4, num_beams=beams)])
    assert generation.score == pytest.approx(sum(generation.log_probs) / len(generation.tokens), abs=1e-4)
    assert generation.log_probs[0] == 0.0


def test_padding_rows_of_the_embedding_are_never_generated(tmp_path):
    """Published checkpoints pad the vocabulary; here every padding row, and `<image>`, gets the highest logits."""
    directory = random_checkpoint(tmp_path, 2, vocab_size=1675 + 45)
    checkpoint = read_checkpoint(str(directory))
    tensors = language_tensors(checkpoint.weights)
    tensors["shared.weight"][1674:] = tensors["shared.weight"][:46] * 3
    model = build_language_model(tensors, checkpoint.config, "float32")
    engine = Engine(create_backend(model, checkpoint.config), checkpoint.config)
    assert checkpoint.config.tokens.known == 1674
    features = np.random.default_rng(0).standard_normal((37, 128)).astype(np.float32)
    for beams in (1, 3):
        options = checkpoint.config.generation_options(num_beams=beams, max_new_tokens=30)
        [generation] = engine.generate([Request(features, [0, 9, 2], options)])
        assert max(generation.tokens) < 1674
