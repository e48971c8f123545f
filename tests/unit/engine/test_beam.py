"""The search rules that can be seen without a model; test_exactness compares the whole search with transformers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor

from florence2.engine.scoring import top
from tests.unit.engine.python_search import Candidate, repeating_tokens, start_search


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 6))
def test_repeating_tokens_are_those_that_transformers_bans(tokens, size):
    """Over a small alphabet, where n-grams repeat all the time."""
    scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), torch.zeros(1, 5))
    assert set(repeating_tokens(tuple(tokens), size)) == {i for i in range(5) if scores[0, i] == -torch.inf}


def test_size_zero_bans_nothing():
    """0 switches the rule off."""
    assert repeating_tokens((1, 1, 1, 1), 0) == []


def search(config, **options):
    return start_search(config.generation_options(**options), config, top)


def test_the_first_token_is_forced_to_bos_and_the_last_to_eos(config):
    """The start token and the forced ones are no choice of the model."""
    greedy = search(config, num_beams=1, max_new_tokens=3)
    assert [constraint.forced for constraint in greedy.constraints()] == [0]
    greedy.advance([Candidate(0.0, 0, 0, 0.0)])
    assert [constraint.forced for constraint in greedy.constraints()] == [None]
    greedy.advance([Candidate(-1.0, 0, 9, -1.0)])
    assert [constraint.forced for constraint in greedy.constraints()] == [2]
    assert greedy.advance([Candidate(-1.0, 0, 2, 0.0)]) is None
    assert greedy.result().tokens == (0, 9, 2)
    assert greedy.result().finish_reason == "length"


def test_one_token_is_eos_since_the_end_is_forced_after_the_beginning(config):
    """MAX_NEW_TOKENS 1: both rules apply, and the last one wins, as in transformers."""
    assert search(config, num_beams=1, max_new_tokens=1).constraints()[0].forced == 2


def test_an_early_eos_is_a_stop(config):
    """The finish reason tells an answer that ended from one that was cut."""
    greedy = search(config, num_beams=1)
    greedy.advance([Candidate(0.0, 0, 0, 0.0)])
    assert greedy.advance([Candidate(-0.5, 0, 2, -0.5)]) is None
    assert greedy.result().finish_reason == "stop"
    assert greedy.result().score == pytest.approx(-0.5 / 2)


def test_only_the_first_candidates_may_finish(config):
    """An EOS among the spare candidates is neither an answer nor a running beam."""
    beams = search(config, num_beams=2, max_new_tokens=20)
    beams.advance([Candidate(0.0, 0, 0, 0.0), Candidate(-1e9, 1, 0, 0.0), *[Candidate(-2e9, 0, 5, -2e9)] * 2])
    parents = beams.advance(
        [Candidate(score, 0, token, score) for score, token in ((-1, 7), (-2, 8), (-3, 2), (-4, 9))]
    )
    assert parents == [0, 0]
    assert beams.last_tokens == [7, 8]
    assert beams.finished == []


@pytest.mark.parametrize("at_least", [0, 1, 4])
def test_eos_is_banned_until_there_are_enough_tokens(config, at_least):
    """The forced `<s>` counts as one of them, and no other token is banned."""
    greedy = search(config, num_beams=1, no_repeat_ngram_size=0, min_new_tokens=at_least)
    greedy.advance([Candidate(0.0, 0, 0, 0.0)])
    for generated in range(1, 7):
        assert greedy.constraints()[0].banned == ([2] if generated < at_least else [])
        greedy.advance([Candidate(0.0, 0, 5, 0.0)])


def test_each_hypothesis_is_penalized_for_its_own_tokens(config):
    """The start token is one of them; without a penalty there is nothing to do."""
    beams = search(config, num_beams=2, max_new_tokens=20, repetition_penalty=1.5)
    beams.advance([Candidate(0.0, 0, 0, 0.0), Candidate(-1e9, 1, 0, 0.0), *[Candidate(-2e9, 0, 5, -2e9)] * 2])
    beams.advance([Candidate(score, 0, token, score) for score, token in ((-1, 7), (-2, 8), (-3, 5), (-4, 9))])
    assert [(set(each.penalized), each.penalty) for each in beams.constraints()] == [({2, 0, 7}, 1.5), ({2, 0, 8}, 1.5)]
    free = search(config, num_beams=1)
    free.advance([Candidate(0.0, 0, 0, 0.0)])
    assert not free.constraints()[0].penalized


def test_bos_is_banned_after_bos_only(config):
    """The option is about the forced `<s>` too."""
    greedy = search(config, num_beams=1, no_repeat_ngram_size=0, min_new_tokens=4, suppress_repeated_bos=True)
    for token, banned in ((0, [2, 0]), (5, [2]), (0, [2, 0]), (6, [])):
        greedy.advance([Candidate(0.0, 0, token, 0.0)])
        assert greedy.constraints()[0].banned == banned


def test_each_token_has_one_draw(config):
    """However often the constraints are read; forced tokens take their draws too, but are not drawn."""
    one, same, other = (search(config, temperature=0.5, top_p=0.9, seed=seed) for seed in (7, 7, 8))
    assert one.constraints()[0].sampling is None
    draws = []
    for _ in range(3):
        for each in (one, same, other):
            each.advance([Candidate(0.0, 0, 5, 0.0)])
        assert one.constraints() == one.constraints() == same.constraints() != other.constraints()
        draws.append(one.constraints()[0].sampling)
    assert [(each.temperature, each.top_k, each.top_p) for each in draws] == [(0.5, 50, 0.9)] * 3
    assert len({each.draw for each in draws}) == 3 and all(0 <= each.draw < 1 for each in draws)
