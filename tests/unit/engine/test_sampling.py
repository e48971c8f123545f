"""Draw tokens from transformers' distribution: what each quantile of it is, and that nothing but the seed decides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from florence2.config import TokenConfig
from florence2.engine.beam import Search
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.cpu.kernels.sampling import draw_token
from florence2.engine.cuda.backend import CudaBackend
from tests.unit.engine.python_search import Constraint, Hypothesis, Sampling
from tests.unit.engine.test_scoring import compiled_candidates, padded_candidates

DISTRIBUTIONS = list(itertools.product((0.3, 1.0, 4.0), (0, 1, 5, 50, 10**9), (0.0, 0.3, 0.9, 1.0)))


class Drawn:
    """A search of one beam whose next token is a quantile."""

    def __init__(self, draw: float, temperature: float, top_k: int, top_p: float) -> None:
        self.running, self.last_tokens = [Hypothesis((7,), (), -1.0)], [7]
        self._sampling = Sampling(draw, temperature, top_k, top_p)

    def constraints(self) -> list[Constraint]:
        return [Constraint(None, [], sampling=self._sampling)]


def distribution(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Return the probabilities that transformers draws from, as `generate` lines up its warpers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(None, torch.from_numpy(logits)[None]).double().softmax(-1)[0].numpy()


def drawn(candidates, searches: list[Drawn], logits: np.ndarray, known: int) -> list[tuple[int, float]]:
    """Return the token that each search gets, and its log-prob, by a function of test_scoring."""
    found = candidates(
        searches, logits, TokenConfig(bos=0, pad=1, eos=2, decoder_start=2, first_location=90, known=known)
    )
    if candidates is padded_candidates:
        return [(best.token, best.log_prob) for [best] in found]
    return [(int(token), log_prob) for [(_, token, log_prob, _)] in found]


def quantiles(probabilities: np.ndarray, order: np.ndarray, draws: np.ndarray) -> list[int]:
    """Return the tokens at these quantiles, given the order in which probabilities are added up."""
    return order[np.searchsorted(probabilities[order].cumsum(), draws, "right")].tolist()


@pytest.mark.parametrize("options", DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("candidates", [compiled_candidates, padded_candidates])
def test_the_quantiles_of_the_distribution_are_transformers(candidates, options):
    """So the distribution is too, to within the distance of the draws. The padded step adds the likely tokens first."""
    random = np.random.default_rng(sum(map(hash, options)) % 1000)
    vocabulary, known = 600, 590
    logits = random.standard_normal(vocabulary).astype(np.float32) * 3
    expected = distribution(logits[:known], *options)
    draws = (np.arange(64) + random.random(64)) / 64
    searches = [Drawn(draw, *options) for draw in draws]
    tokens, log_probs = zip(*drawn(candidates, searches, np.tile(logits, (len(searches), 1)), known), strict=True)
    order = np.arange(known) if candidates is compiled_candidates else np.argsort(-logits[:known])
    assert list(tokens) == quantiles(expected, order, draws)
    assert list(log_probs) == pytest.approx(np.log(expected[list(tokens)]).tolist(), abs=1e-4)


@pytest.mark.parametrize("candidates", [compiled_candidates, padded_candidates])
def test_nan_is_reported(candidates):
    """The engine recognizes such a request by the score of its candidate."""
    logits = np.random.default_rng(0).standard_normal((2, 300)).astype(np.float32)
    logits[0, 77] = np.nan
    (_, ill), (_, healthy) = drawn(candidates, [Drawn(0.5, 1.0, 50, 0.9), Drawn(0.5, 1.0, 50, 0.9)], logits, 300)
    assert np.isnan(ill) and np.isfinite(healthy)


@pytest.mark.parametrize("top_k", [0, 1, 3, 50])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 1.0])
def test_equal_logits_are_equally_likely(top_k, top_p):
    """All of them stay in the top k, as in transformers; of those that are left, half have a probability of 0.5."""
    logits, weights = np.zeros(200, np.float32), np.zeros(200, np.float32)
    _, log_prob = draw_token(logits, np.float32(0), weights, 0.5, np.float32(1), top_k, np.float32(top_p))
    left = (weights > 0).sum()
    assert left == {0.0: 1, 0.5: 100, 1.0: 200}[top_p]
    assert log_prob == pytest.approx(-np.log(left))


def test_consecutive_seeds_draw_from_transformers_distribution(config):
    """Chi-square over 10,000 seeds: of 20 tokens' shares, the test finds 5 % in total variation in 99.9 % of cases.

    The statistic has a mean of 19 and a deviation of 6.2; a shift of 5 % would add at least 10,000 * (2 * 0.05)**2.
    """
    options, count = config.generation_options(temperature=0.8, top_k=20), 10_000
    logits, weights = np.random.default_rng(1).standard_normal(300).astype(np.float32), np.zeros(300, np.float32)
    expected, found = distribution(logits, 0.8, 20, 1.0), np.zeros(300)
    for seed in range(count):
        search = Search(config.generation_options(temperature=0.8, top_k=20, seed=seed))
        _forced, draw = search.draw(), search.draw()
        found[draw_token(logits, logits.max(), weights, draw, np.float32(0.8), options.top_k, np.float32(1))[0]] += 1
    kept = expected > 0
    assert kept.sum() == 20 and found[kept].sum() == count
    statistic = ((found - count * expected)[kept] ** 2 / (count * expected[kept])).sum()
    assert statistic < 19 + 4 * 6.2


@pytest.mark.parametrize("backend", [CpuBackend, CudaBackend])
def test_nothing_but_the_seed_decides(make_engine, make_request, backend):
    """Rows, order and neighbors do not, nor do sampled requests change what others get."""
    sampled = [make_request(seed % 3, temperature=1.0, seed=seed, max_new_tokens=20) for seed in range(6)]
    others = [make_request(seed, num_beams=beams) for seed, beams in enumerate((1, 3, 2))]
    single = [make_engine(backend=backend).generate([request])[0].tokens for request in [*sampled, *others]]
    assert len(set(single)) == len(single)
    for order in (range(9), (8, 3, 1, 7, 0, 2, 6, 5, 4)):
        requests = [[*sampled, *others][place] for place in order]
        answers = make_engine(rows=7, backend=backend, max_waiting=9).generate(requests)
        assert [answer.tokens for answer in answers] == [single[place] for place in order]


def test_the_number_of_threads_does_not_decide(make_engine, make_request):
    """Each row's numbers are added in the same order."""
    request, threads, answers = make_request(2, temperature=1.0, top_p=0.9, seed=4), torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            answers += make_engine().generate([request])
        finally:
            torch.set_num_threads(threads)
    assert len({answer.tokens for answer in answers}) == len({answer.log_probs for answer in answers}) == 1


def test_without_a_seed_each_answer_is_another_one(make_engine, make_request):
    """The chance that two of them are equal is about 37 ** -20."""
    engine = make_engine(rows=6)
    answers = engine.generate([make_request(0, temperature=2.0, top_k=0, no_repeat_ngram_size=0)] * 3)
    assert len({answer.tokens for answer in answers}) == 3
