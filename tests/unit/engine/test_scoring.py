"""The compiled choice of tokens against torch's, rules, ties and all."""

import itertools

import numpy as np
import pytest
import torch

from florence2.config import TokenConfig
from florence2.engine import scoring
from florence2.engine.cpu.backend import batch_of, vocabulary_of
from florence2.engine.cpu.kernels.choice import choose
from florence2.engine.cpu.kernels.layout import Scratch
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.cuda.step import PaddedStep, Shape, top_of_rows
from tests.unit.engine import torch_choice
from tests.unit.engine.inputs import Span, lists_of, step_input
from tests.unit.engine.python_search import Candidate, Constraint, Hypothesis
from tests.unit.engine.test_attention import CONFIG


class Search:
    """Running hypotheses with given scores and rules."""

    def __init__(self, random: np.random.Generator, vocabulary: int) -> None:
        beams = random.choice([1, 1, 2, 3, 5, 24])
        self.running = [Hypothesis((7,), (), float(score)) for score in random.integers(-3, 4, beams)]
        self.last_tokens = [7] * beams
        banned = random.choice([0, 3])
        forced = int(random.integers(vocabulary)) if random.random() < 0.2 else None
        penalty = float(random.choice([1.0, 0.7, 1.3]))
        penalized = 0 if penalty == 1 else 20
        self._constraints = [
            Constraint(
                forced,
                [] if forced else random.integers(vocabulary, size=banned).tolist(),
                [] if forced else random.choice(vocabulary, penalized, replace=False).tolist(),
                penalty,
            )
            for _ in range(beams)
        ]

    def constraints(self) -> list[Constraint]:
        return self._constraints


def tokens_of(random: np.random.Generator, vocabulary: int) -> TokenConfig:
    """Return ids for a vocabulary: its locations may begin and end anywhere."""
    known, first_location = vocabulary - int(random.integers(7)), int(random.integers(vocabulary))
    return TokenConfig(bos=0, pad=1, eos=2, decoder_start=2, first_location=first_location, known=known)


def compiled_candidates(searches: list[Search], logits: np.ndarray, tokens: TokenConfig) -> list[list[tuple]]:
    """Return what `choose` finds; three threads share the requests, one after the other."""
    rows, vocabulary = logits.shape
    starts = itertools.accumulate((len(search.running) for search in searches), initial=0)
    spans = [Span(range(a, b), 0, 0, 1) for a, b in itertools.pairwise(starts)]
    batch = batch_of(step_input(searches, spans))
    scratch = Scratch(*[np.zeros(0)] * len(Scratch._fields))._replace(
        logits=np.pad(logits, ((0, 0), (0, 7)), constant_values=99),  # what follows is not looked at
        largest=np.zeros(rows, np.float32),
        log_sums=np.zeros(rows, np.float32),
        weights=np.zeros((3, vocabulary), np.float32),
        best_sums=np.zeros(2 * rows, np.float32),
        best_places=np.zeros(2 * rows, np.int64),
        kept_raw=np.zeros(rows, np.int64),
        raw_logits=np.zeros((rows, vocabulary), np.float32),
        raw_largest=np.zeros(rows, np.float32),
        raw_log_sums=np.zeros(rows, np.float32),
        best_log_probs=np.zeros(2 * rows, np.float32),
        best_log_masses=np.zeros(2 * rows, np.float32),
    )
    for thread in range(3):
        choose(thread, 3, vocabulary, vocabulary_of(tokens), batch, scratch)
    found = []
    for span in spans:
        first, count = 2 * span.rows.start, 2 * len(span.rows) if len(span.rows) > 1 else 1
        found.append(
            [
                (
                    scratch.best_sums[i],
                    scratch.best_places[i],
                    scratch.best_log_probs[i],
                    scratch.best_log_masses[i],
                )
                for i in range(first, first + count)
            ]
        )
    return found


@pytest.mark.parametrize("seed", range(150))
def test_it_chooses_what_torch_does(seed):
    """The same tokens in the same order, though many logits are equal and so are many sums."""
    random = np.random.default_rng(seed)
    vocabulary = int(random.integers(130, 2000))
    tokens = tokens_of(random, vocabulary)
    searches = [Search(random, tokens.known) for _ in range(random.integers(1, 6))]
    rows = sum(len(search.running) for search in searches)
    logits = random.integers(0, random.integers(2, 300), (rows, vocabulary)).astype(np.float32) / 8
    expected = torch_choice.candidates(searches, torch.from_numpy(logits.copy()), tokens)
    for best, ours, search in zip(expected, compiled_candidates(searches, logits, tokens), searches, strict=True):
        assert [each.beam * vocabulary + each.token for each in best] == [place for _, place, *_ in ours]
        for field, place in ("log_prob", 2), ("log_mass", 3):
            assert [each[place] for each in ours] == pytest.approx([getattr(each, field) for each in best], abs=1e-5)
        if len(search.running) > 1:
            assert [score for score, *_ in ours] == pytest.approx([candidate.score for candidate in best], abs=1e-5)


def padded_candidates(searches: list[Search], logits: np.ndarray, tokens: TokenConfig) -> list[list[Candidate]]:
    """Return what a padded step chooses, with requests in rows apart from each other."""
    spans, row = [], 1
    for slot, search in enumerate(searches):
        spans.append(Span(range(row, row + len(search.running)), slot, 0, 1))
        row += len(search.running) + slot % 2
    samples = any(constraint.sampling for search in searches for constraint in search.constraints())
    shape = Shape(row, len(searches), max(len(search.running) for search in searches), 1, 1, 20, samples)
    vocabulary = logits.shape[1]
    step = PaddedStep(PaddedCache(CONFIG, row, torch.float32, torch.device("cpu")), vocabulary, tokens, shape)
    given = step_input(searches, spans)
    step.fill(given)
    step.inputs.upload()
    padded = torch.zeros(row, vocabulary)
    padded[[row for span in spans for row in span.rows]] = torch.from_numpy(logits.copy())
    step.choose(padded)
    return lists_of(searches, given.layout.groups, step.candidates(given.layout.groups))


@pytest.mark.parametrize("seed", range(150))
def test_a_padded_step_chooses_what_torch_does(seed):
    """Different logits and scores: how equal ones are ordered depends on the device."""
    random = np.random.default_rng(seed)
    vocabulary = int(random.integers(130, 6000))
    tokens = tokens_of(random, vocabulary)
    searches = [Search(random, tokens.known) for _ in range(random.integers(1, 6))]
    for search in searches:
        search.running = [Hypothesis((7,), (), float(random.standard_normal())) for _ in search.running]
    rows = sum(len(search.running) for search in searches)
    logits = random.standard_normal((rows, vocabulary), np.float32) * 3
    expected = torch_choice.candidates(searches, torch.from_numpy(logits.copy()), tokens)
    for best, ours in zip(expected, padded_candidates(searches, logits, tokens), strict=True):
        finite = [candidate for candidate in best if np.isfinite(candidate.log_prob)]  # the rest has no order
        assert [each[1:3] for each in ours[: len(finite)]] == [each[1:3] for each in finite]
        for field in ("log_prob", "log_mass", "score"):
            ours_by_field, theirs = ([getattr(each, field) for each in part] for part in (ours[: len(finite)], finite))
            assert ours_by_field == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("size", "count"), [(100, 6), (5000, 6), (5000, 32), (51_289, 10)])
def test_the_top_of_rows_is_torchs(size, count):
    """Most scores are equal, within a group and across groups."""
    scores = torch.from_numpy(np.random.default_rng(size).integers(0, 500, (4, size)).astype(np.float32))
    values, places = top_of_rows(scores, count)
    assert torch.equal(values, scores.topk(count).values) and torch.equal(scores.gather(1, places), values)
    assert all(len(set(row)) == count for row in places.tolist())


@pytest.mark.parametrize("beam", [0, 1, 2])
def test_a_padded_step_reports_nan_in_a_beam(beam):
    random = np.random.default_rng(0)
    searches = [search for _ in range(99) if len((search := Search(random, 500)).running) == 3][:2]
    logits = random.standard_normal((6, 500)).astype(np.float32)
    logits[beam, 77] = np.nan
    ill, healthy = padded_candidates(searches, logits, tokens_of(random, 500))
    assert np.isnan(ill[0].score) and not np.isnan(healthy[0].score)


@pytest.mark.parametrize("beam", [0, 1, 2])
def test_nan_in_a_beam_is_reported(beam):
    """The engine recognizes such a request by the score of its first candidate."""
    random = np.random.default_rng(0)
    searches = [search for _ in range(99) if len((search := Search(random, 500)).running) == 3][:2]
    logits = random.standard_normal((6, 500)).astype(np.float32)
    logits[beam, 77] = np.nan
    ill, healthy = compiled_candidates(searches, logits, tokens_of(random, 500))
    assert np.isnan(ill[0][0]) and not np.isnan(healthy[0][0])


@pytest.mark.parametrize("seed", range(50))
def test_the_top_is_torch_s(seed):
    """Whether scores are equal, or only in float32, or -inf, or all different."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 17))
    different = random.standard_normal(3 * count)
    for scores in (different, different.round(1), different - 1e9, np.where(different > 0, -np.inf, different)):
        assert scoring.top(scores.tolist(), count) == torch.tensor(scores.tolist()).topk(count).indices.tolist()
