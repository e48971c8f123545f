"""The searches of all requests at once are those of python_search, number by number, and so are the moves of rows."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from florence2.config import ModelConfig
from florence2.contract import GenerationOptions
from florence2.engine.backend import NO_TOKEN, Candidates, StepInput, TokenLists
from florence2.engine.beam import Search
from florence2.engine.scoring import top
from florence2.engine.searches import Searches
from tests.unit.engine import python_search
from tests.unit.engine.inputs import Span, arrays_of, step_input
from tests.unit.engine.python_search import Candidate, start_search

ROWS, STEPS = 40, 100
TOKENS = (0, 2, 3, 4, 5, 6)  # `<s>` and `</s>` among few, so that much repeats itself and ends
OF_ONE_BEAM = ("temperature", "top_k", "top_p", "seed")


@dataclass(eq=False)
class Pair:
    """A search and its reference, and the tokens that the rows of a cache hold for it."""

    ours: Search
    reference: python_search.Search
    cached: dict[int, list[int]] = field(default_factory=dict)
    ends: float = 0.1  # the share of `</s>` among the candidates


def random_options(chance: random.Random, config: ModelConfig) -> GenerationOptions:
    beams = chance.choice([1, 1, 2, 3, 3, 4, 5, 8, 16])
    sampling = dict(temperature=chance.choice([0.5, 1e-9]), top_k=7, top_p=0.9, seed=chance.randrange(99))
    return config.generation_options(
        num_beams=beams,
        max_new_tokens=chance.choice([1, 2, 3, 30, 30]),
        min_new_tokens=chance.choice([0, 0, 1]),
        no_repeat_ngram_size=chance.choice([0, 1, 2, 3, 3, 5]),
        length_penalty=chance.choice([1.0, 1.0, 0.6, -1.0]),
        early_stopping=chance.random() < 0.5,
        repetition_penalty=chance.choice([1.0, 1.0, 1.3]),
        suppress_repeated_bos=chance.random() < 0.3,
        **(sampling if beams == 1 and chance.random() < 0.5 else {}),
    )


def start(chance: random.Random, config: ModelConfig, searches: Searches, live: list[Pair]) -> None:
    """Begin a search where there is room for it, sometimes."""
    taken = {row for pair in live for row in pair.ours.rows}
    options, first = random_options(chance, config), chance.randrange(ROWS)
    rows = range(first, first + options.num_beams)
    if rows.stop <= ROWS and not taken & set(rows):
        pair = Pair(Search(options), start_search(options, config, top), ends=chance.choice([0.02, 0.1, 0.5]))
        searches.start(pair.ours, rows, slot=first, encoder_length=5 + first)
        pair.cached = {row: [] for row in rows}
        live.append(pair)
        live.sort(key=lambda each: each.ours.rows.start)


def some_candidates(chance: random.Random, pair: Pair) -> list[Candidate]:
    """Return candidates, best first. The scores are multiples of a step, so that many are equal."""
    running = pair.reference.running
    count = 1 if len(running) == 1 else 2 * len(running)
    tokens = [token for token in TOKENS if token != 2 or chance.random() < 5 * pair.ends]
    pairs = chance.sample([(beam, token) for beam in range(len(running)) for token in tokens[:5]], count)
    found = []
    step = chance.choice([1e-6, 0.25, 0.25])
    for beam, token in pairs:
        log_prob = float(np.float32(-step * chance.randrange(1, 9) if chance.random() < 0.9 else -math.inf))
        score = running[beam].score + log_prob
        found.append(Candidate(score if count == 1 else float(np.float32(score)), beam, token, log_prob, log_prob / 2))
    return sorted(found, key=lambda each: -each.score)


def lists(tokens: TokenLists) -> list[list[int]]:
    return [sorted(set(tokens.tokens[a:b].tolist())) for a, b in zip(tokens.starts, tokens.starts[1:], strict=False)]


def assert_same_input(given: StepInput, live: list[Pair]) -> None:
    """Compare with the rules of the references, and with the rows that they continue."""
    spans = [Span(each.ours.rows, each.ours.slot, each.reference.length - 1, each.ours.encoder_length) for each in live]
    expected = step_input([pair.reference for pair in live], spans)
    for name in ("tokens", "positions", "scores", "forced", "draws"):
        assert getattr(given, name).tolist() == getattr(expected, name).tolist(), name
    for name in ("rows", "starts", "slots", "encoder_lengths"):
        assert getattr(given.layout, name).tolist() == getattr(expected.layout, name).tolist(), name
    drawn = given.draws >= 0
    free = given.forced == NO_TOKEN  # no other rule counts where a token is forced
    for name, where in ("temperatures", drawn), ("top_ks", drawn), ("top_ps", drawn), ("penalties", free):
        assert getattr(given.layout, name)[where].tolist() == getattr(expected.layout, name)[where].tolist(), name
    for group, other in zip(given.layout.groups, expected.layout.groups, strict=True):
        assert group.requests.tolist() == other.requests.tolist() and group.rows.tolist() == other.rows.tolist()
    for name in ("banned", "penalized"):
        ours, theirs = (np.array(lists(getattr(each, name)), object) for each in (given, expected))
        assert ours[free].tolist() == theirs[free].tolist(), name
    assert all(len(set(tokens)) == len(tokens) for tokens in lists(given.penalized))


def move(given: StepInput, live: list[Pair]) -> None:
    """Move rows as a backend does, add the tokens that are decoded now, and compare with the hypotheses."""
    parents = dict(zip(given.layout.rows.tolist(), given.parents.tolist(), strict=True))
    for pair, kept in zip(live, given.kept.tolist(), strict=True):
        before = {row: list(tokens) for row, tokens in pair.cached.items()}
        for row in pair.ours.rows:
            if parents[row] != row:
                pair.cached[row][kept:] = before[parents[row]][kept:]
        for row, hypothesis in zip(pair.ours.rows, pair.reference.running, strict=True):
            pair.cached[row].append(hypothesis.tokens[-1])
            assert tuple(pair.cached[row]) == hypothesis.tokens


@pytest.mark.parametrize("seed", range(20))
def test_searches_are_those_of_the_reference(config, seed):
    """All options, 1 to 16 beams, requests that join and leave, equal scores, and numbers that are not finite."""
    chance = random.Random(seed)
    config = replace(config, generation=replace(config.generation, forced_bos=chance.choice([0, None])))
    config = replace(config, generation=replace(config.generation, forced_eos=chance.choice([2, None])))
    searches, live = Searches(config, ROWS, top), list[Pair]()
    for _ in range(STEPS):
        for _ in range(chance.choice([0, 1, 4])):
            start(chance, config, searches, live)
        if not live:
            continue
        given = searches.step_input([pair.ours for pair in live])
        assert_same_input(given, live)
        move(given, live)
        found = [some_candidates(chance, pair) for pair in live]
        broken = {place for place in range(len(live)) if chance.random() < 0.01}
        over = searches.advance(candidates_of(given, found, broken))
        expected = {place: None for place in broken}
        for place, (pair, candidates) in enumerate(zip(live, found, strict=True)):
            if place not in broken and pair.reference.advance(candidates) is None:
                expected[place] = pair.reference.result()
        assert dict(over) == expected and len(over) == len(expected)
        for place in sorted(expected, reverse=True):
            del live[place]
        for pair in live:
            if pair.ours.can_be_followed:
                assert searches.so_far(pair.ours) == pair.reference.so_far()


def candidates_of(given: StepInput, found: list[list[Candidate]], broken: set[int]) -> list[Candidates]:
    """Return the candidates by group; broken requests have no numbers, and beams that do not exist."""
    groups = []
    for group in given.layout.groups:
        candidates = arrays_of([found[request] for request in group.requests])
        for place, request in enumerate(group.requests.tolist()):
            if request in broken:
                for part in (candidates.scores, candidates.log_probs):
                    part[place] = math.nan
                candidates.beams[place] = 99
        groups.append(candidates)
    return groups
