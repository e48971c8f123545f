"""The choice of tokens in plain torch, with transformers' arithmetic and order of the rules: the backends' reference.

The padding rows of the embedding (ids >= `known_tokens`) are masked after the softmax: they can never be chosen, and
the scores stay those of transformers, which counts them.

R rows of a step, K rows (beams) of one request, N requests with as many beams, V rows of the embedding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from florence2.config import TokenConfig
from florence2.locations import NEAR
from tests.unit.engine.python_search import Candidate, Constraint, Search


def candidates(searches: Sequence[Search], logits: Tensor, tokens: TokenConfig) -> list[list[Candidate]]:
    """Return for each search the candidates of its `advance`, best first.

    logits: float32 [R, V], the rows in the order of the searches; they are overwritten.
    """
    probabilities = logits.double().softmax(-1)  # of the model itself, without rules
    groups: defaultdict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))  # places and rows, by beams
    row = 0
    for place, search in enumerate(searches):
        beams = len(search.running)
        places, rows = groups[beams]
        places.append(place)
        rows.extend(range(row, row + beams))
        row += beams
    found: list[list[Candidate]] = [[]] * len(searches)
    for beams, (places, rows) in groups.items():
        group = [searches[place] for place in places]
        theirs = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
        constraints = [constraint for search in group for constraint in search.constraints()]
        score = _best_tokens if beams == 1 else _best_continuations
        for place, best in zip(places, score(group, theirs, constraints, tokens.known), strict=True):
            found[place] = best
    starts = accumulate((len(search.running) for search in searches), initial=0)
    return [
        [each._replace(log_mass=_log_mass(probabilities[start + each.beam], each.token, tokens)) for each in best]
        for start, best in zip(starts, found, strict=False)
    ]


def _log_mass(probabilities: Tensor, token: int, tokens: TokenConfig) -> float:
    """Return the log of a token's probability, or of all locations' at most NEAR bins from it."""
    location = token - tokens.first_location
    if not 0 <= location < 1000:
        return math.log(probabilities[token])
    locations = probabilities[tokens.first_location : tokens.first_location + 1000]
    return math.log(locations[max(0, location - NEAR) : location + NEAR + 1].sum())


def _best_tokens(
    searches: Sequence[Search], logits: Tensor, constraints: Sequence[Constraint], known_tokens: int
) -> list[list[Candidate]]:
    """Choose greedily: the rules act on the logits, and log-probs are those of the logits they leave."""
    _apply(constraints, logits)
    tokens = logits[:, :known_tokens].argmax(-1)
    log_probs = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    chosen = zip(searches, tokens.tolist(), log_probs.tolist(), strict=True)
    return [[Candidate(search.running[0].score + log_prob, 0, token, log_prob)] for search, token, log_prob in chosen]


def _best_continuations(
    searches: Sequence[Search], logits: Tensor, constraints: Sequence[Constraint], known_tokens: int
) -> list[list[Candidate]]:
    """Choose for beam search: the rules act on the log-probs; the best 2K of all K * V sums of each search."""
    log_probs = logits.log_softmax(-1)
    log_probs[:, known_tokens:] = -torch.inf
    _apply(constraints, log_probs)
    scores = [hypothesis.score for search in searches for hypothesis in search.running]
    sums = log_probs + torch.tensor(scores, device=logits.device)[:, None]
    beams, vocabulary = len(searches[0].running), logits.shape[1]
    best = sums.view(len(searches), -1).topk(2 * beams)  # of [N, K * V]
    chosen = log_probs.view(len(searches), -1).gather(1, best.indices)
    rows = zip(best.values.tolist(), best.indices.tolist(), chosen.tolist(), strict=True)
    return [
        [
            Candidate(score, index // vocabulary, index % vocabulary, log_prob)
            for score, index, log_prob in zip(*row, strict=True)
        ]
        for row in rows
    ]


def _apply(constraints: Sequence[Constraint], scores: Tensor) -> None:
    """Apply the rules to scores [R, V], in place: penalties, banned tokens, forced tokens, in transformers' order."""
    penalized = [(row, token) for row, constraint in enumerate(constraints) for token in constraint.penalized]
    if penalized:
        places = torch.tensor(penalized, device=scores.device).unbind(1)
        penalties = torch.tensor([constraint.penalty for constraint in constraints], device=scores.device)[places[0]]
        chosen = scores[places]
        scores[places] = torch.where(chosen < 0, chosen * penalties, chosen / penalties)
    rows = [row for row, constraint in enumerate(constraints) for _ in constraint.banned]
    banned = [token for constraint in constraints for token in constraint.banned]
    if banned:
        scores[torch.tensor(rows, device=scores.device), torch.tensor(banned, device=scores.device)] = -torch.inf
    for row, constraint in zip(scores, constraints, strict=True):
        if constraint.forced is not None:
            row.fill_(-torch.inf)
            row[constraint.forced] = 0.0
