"""From logits to candidates, with transformers' arithmetic and order of the rules, so that ties fall alike.

K beams of one request, V rows of the embedding. The padding rows of the embedding (ids >= `known_tokens`) are masked
after the softmax: they can never be chosen, and the scores stay those of transformers, which counts them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florence2.engine.beam import Candidate, Constraint, Search


def candidates(search: Search, logits: Tensor, known_tokens: int) -> list[Candidate]:
    """logits: float32 [K, V]. Returns the candidates of `search.advance`, best first."""
    constraints = search.constraints()
    if len(constraints) == 1:
        return [_best_token(logits[0], constraints[0], search.running[0].score, known_tokens)]
    running = torch.tensor([hypothesis.score for hypothesis in search.running], device=logits.device)
    return _best_continuations(logits, constraints, running, known_tokens)


def top(scores: list[float], count: int) -> list[int]:
    """The places of the `count` highest float32 scores, ties broken as by transformers."""
    return torch.tensor(scores).topk(count).indices.tolist()


def _best_token(logits: Tensor, constraint: Constraint, running: float, known_tokens: int) -> Candidate:
    """Greedy: the rules act on the logits, and the log-prob is that of the logits they leave."""
    if constraint.forced is not None:
        return Candidate(running, 0, constraint.forced, 0.0)
    logits = logits.clone()
    logits[constraint.banned] = -torch.inf
    token = int(logits[:known_tokens].argmax())
    log_prob = float(logits.log_softmax(-1)[token])
    return Candidate(running + log_prob, 0, token, log_prob)


def _best_continuations(
    logits: Tensor, constraints: list[Constraint], running: Tensor, known_tokens: int
) -> list[Candidate]:
    """Beam search: the rules act on the log-probs; the best 2K of all K * V sums. running: [K] scores so far."""
    log_probs = logits.log_softmax(-1)
    log_probs[:, known_tokens:] = -torch.inf
    for row, constraint in zip(log_probs, constraints, strict=True):
        if constraint.forced is not None:
            row.fill_(-torch.inf)
            row[constraint.forced] = 0.0
        row[constraint.banned] = -torch.inf
    vocabulary = log_probs.shape[1]
    best = (log_probs + running[:, None]).flatten().topk(2 * len(constraints))
    chosen = log_probs.flatten()[best.indices]
    rows = zip(best.values.tolist(), best.indices.tolist(), chosen.tolist(), strict=True)
    return [Candidate(score, index // vocabulary, index % vocabulary, log_prob) for score, index, log_prob in rows]
