"""Rank scores as transformers does."""

from __future__ import annotations

from array import array

import torch


def top(scores: list[float], count: int) -> list[int]:
    """Return the places of the `count` highest float32 scores, ties broken as in transformers."""
    rounded = array("f", scores)
    if len(set(rounded)) == len(scores):  # no ties: torch would take a noticeable part of a step
        return sorted(range(len(scores)), key=rounded.__getitem__, reverse=True)[:count]
    return torch.tensor(scores).topk(count).indices.tolist()
