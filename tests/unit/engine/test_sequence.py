"""The moves of beams between two steps: rows continue what their parents decoded."""

import random

import pytest

from florence2.engine.beam import Candidate, start_search
from florence2.engine.scoring import top
from florence2.engine.sequence import Request, Sequence


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_rows_hold_what_their_hypotheses_decoded(config, beams, seed):
    """Whatever the parents are, if only the positions after the kept ones are copied. Few tokens make many repeats."""
    chance = random.Random(seed)
    options = config.generation_options(num_beams=beams, max_new_tokens=40, early_stopping=False)
    sequence = Sequence(Request(None, [0, 2], options), start_search(options, config, top), rows=range(7, 7 + beams))
    cached = {row: [] for row in sequence.rows}
    while True:
        before = {row: list(tokens) for row, tokens in cached.items()}
        for source, target in sequence.moves:
            cached[target][sequence.kept :] = before[source][sequence.kept :]
        for row, hypothesis in zip(sequence.rows, sequence.search.running, strict=True):
            cached[row].append(hypothesis.tokens[-1])
            assert tuple(cached[row]) == hypothesis.tokens
        pairs = [(beam, token) for beam in range(beams) for token in (3, 4, 5, 6)]
        pairs = chance.sample(pairs, 2 * beams if beams > 1 else 1)
        scores = sorted((chance.random() for _ in pairs), reverse=True)
        sequence.advance([Candidate(score, *pair, -1.0) for score, pair in zip(scores, pairs, strict=True)])
        if sequence.done:
            break
    assert len(cached[7]) == 40
