"""Steps as the engine describes them to backends, made from one search at a time."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from florence2.engine.backend import NO_DRAW, NO_TOKEN, Candidates, Group, Layout, StepInput, TokenLists
from tests.unit.engine.python_search import Candidate, Constraint, Sampling

NO_SAMPLING = Sampling(draw=NO_DRAW, temperature=1.0, top_k=0, top_p=1.0)


@dataclass(frozen=True)
class Span:
    """One live request's share of a step."""

    rows: range  # K adjacent rows, one for each running hypothesis
    slot: int
    position: int  # of the token that is decoded now; the same in all K rows
    encoder_length: int  # positions of the slot that belong to the request
    moves: Sequence[tuple[int, int]] = field(default=())  # (from, to): rows that take over what others hold
    kept: int = 0  # leading positions that are equal in all rows of `moves`


class Search(Protocol):
    """What the helpers here read of a search."""

    running: Sequence[Any]  # hypotheses, of which only the scores are read
    last_tokens: list[int]

    def constraints(self) -> list[Constraint]: ...


def step_input(searches: Sequence[Search], spans: Sequence[Span]) -> StepInput:
    """Return a step for these searches, which are in the order of their rows."""
    rows = np.array([row for span in spans for row in span.rows])
    parents = {target: source for span in spans for source, target in span.moves}
    rules = [constraint for search in searches for constraint in search.constraints()]
    samplings = [rule.sampling or NO_SAMPLING for rule in rules]
    counts = [len(span.rows) for span in spans]
    starts = np.array([*itertools.accumulate(counts, initial=0)])
    groups = [
        Group(
            np.flatnonzero(np.array(counts) == count),
            np.array([span.rows for span in spans if len(span.rows) == count]),
        )
        for count in sorted(set(counts))
    ]
    layout = Layout(
        rows=rows,
        starts=starts,
        slots=np.array([span.slot for span in spans]),
        encoder_lengths=np.array([span.encoder_length for span in spans]),
        groups=groups,
        penalties=np.array([rule.penalty for rule in rules], np.float32),
        temperatures=np.array([each.temperature for each in samplings], np.float32),
        top_ks=np.array([each.top_k for each in samplings]),
        top_ps=np.array([each.top_p for each in samplings], np.float32),
    )
    return StepInput(
        layout,
        tokens=np.array([token for search in searches for token in search.last_tokens]),
        positions=np.array([span.position for span in spans for _ in span.rows]),
        scores=np.array([hypothesis.score for search in searches for hypothesis in search.running]),
        parents=np.array([parents.get(row, row) for row in rows.tolist()]),
        kept=np.array([span.kept for span in spans]),
        forced=np.array([NO_TOKEN if rule.forced is None else rule.forced for rule in rules]),
        banned=token_lists(rule.banned for rule in rules),
        penalized=token_lists(rule.penalized for rule in rules),
        draws=np.array([each.draw for each in samplings]),
    )


def token_lists(lists: Iterable[Collection[int]]) -> TokenLists:
    """Return the tokens of each row."""
    found = [list(tokens) for tokens in lists]
    starts = np.array([*itertools.accumulate(map(len, found), initial=0)])
    return TokenLists(np.array([token for tokens in found for token in tokens], np.int64), starts)


def arrays_of(candidates: Sequence[Sequence[Candidate]]) -> Candidates:
    """Return the candidates of a group."""
    columns = np.array(candidates, np.float64).transpose(2, 0, 1)
    scores, log_probs, log_masses = (columns[place].astype(np.float32) for place in (0, 3, 4))
    return Candidates(scores, columns[1].astype(np.int64), columns[2].astype(np.int64), log_probs, log_masses)


def lists_of(searches: Sequence[Search], groups: Sequence[Group], found: Sequence[Candidates]) -> list[list[Candidate]]:
    """Return the candidates of each search; those of one beam get their score."""
    lists: dict[int, list[Candidate]] = {}
    for group, candidates in zip(groups, found, strict=True):
        columns_of_each = zip(*(part.tolist() for part in candidates), strict=True)
        for request, columns in zip(group.requests.tolist(), columns_of_each, strict=True):
            lists[request] = [Candidate(*each) for each in zip(*columns, strict=True)]
            if group.beams == 1:
                [best] = lists[request]
                lists[request] = [best._replace(score=searches[request].running[0].score + best.log_prob)]
    return [lists[request] for request in range(len(searches))]
