"""Draw tokens from the distributions that transformers' warpers leave: temperature, then top k, then top p.

R rows, V tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = 1e-6  # of top p: 0 leaves the most likely token


def draw_tokens(
    scores: Tensor, draws: Tensor, temperatures: Tensor, top_ks: Tensor, top_ps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a token of each row, and its log-prob in the distribution it is drawn from: [R, 1] twice.

    scores: [R, V]. All others [R, 1], as in `beam.Sampling`: a draw is a quantile, counted from the most likely token.
    """
    size = scores.shape[1]
    ordered, tokens = (scores / temperatures).sort(-1, descending=True)
    last = ordered.gather(1, torch.where(top_ks == 0, size, top_ks).long().clamp(max=size) - 1)
    probs = ordered.masked_fill_(ordered < last, -math.inf).softmax(-1)
    before = probs.cumsum(-1).sub_(probs)
    probs.masked_fill_(before >= torch.where(top_ps < 1, top_ps.clamp(min=LEAST), math.inf), 0)
    sums = probs.cumsum(-1)
    place = (sums <= draws * sums[:, -1:]).sum(-1, keepdim=True)
    place = place.minimum((probs > 0).sum(-1, keepdim=True) - 1).clamp(min=0)  # where sums were rounded, or are NaN
    return tokens.gather(1, place), (probs.gather(1, place) / sums[:, -1:]).log()
