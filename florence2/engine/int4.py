"""Weights of 4 bits. Unpacked they are int8 weights, so the products are those of int8.

A weight is `lowest + spacing * code`, an int8 number, and an output's float scale makes it a number of the model. Each
GROUP of inputs of an output has its own `lowest` and `spacing`; with both it takes 4.5 bits per weight.

O outputs, I inputs, G groups of GROUP inputs, the last of them padded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP = 32
CODES = 16
WIDEST = 17  # spacing: 15 * 17 = 255 levels, all that int8 has
LEVELS = 127  # of int8 on either side of zero
TINY = 1e-30  # the scale of a row of zeros
# What `compress` tries for each group: the spacing as a share of the one that reaches the group's extremes, and moves
# of the middle, in spacings. With all spacings and moves (161 of them) the error would be 2 % smaller.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
MOVES = (-0.4, -0.2, 0.0, 0.2, 0.4)


class Int4Linear(nn.Module):
    """y = x W^T + b with 4-bit weights."""

    weight: Tensor  # uint8 [O, G * GROUP / 2], codes: the first half of the inputs in the lower bits, the rest above
    lowest: Tensor  # int8 [O, G]
    spacing: Tensor  # uint8 [O, G]
    scale: Tensor  # float32 [O]
    bias: Tensor  # float32 [O]

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, groups = inputs, -(-inputs // GROUP)
        self.register_buffer("weight", torch.empty(outputs, groups * GROUP // 2, dtype=torch.uint8))
        self.register_buffer("lowest", torch.empty(outputs, groups, dtype=torch.int8))
        self.register_buffer("spacing", torch.empty(outputs, groups, dtype=torch.uint8))
        self.register_buffer("scale", torch.empty(outputs))
        self.register_buffer("bias", torch.empty(outputs))


def compress(weight: Tensor) -> dict[str, Tensor]:
    """Return the buffers of an Int4Linear but its bias; weight: float [O, I].

    The levels of a group are those of the tried ones with the smallest squared error.
    """
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp_min(TINY) / LEVELS
    padding = weight[:, -1:].expand(-1, -weight.shape[1] % GROUP)  # must not widen the last group
    groups = (torch.cat([weight, padding], 1) / scale).unflatten(1, (-1, GROUP))
    bottom, top = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best: tuple[Tensor, ...] = ()
    error = torch.full_like(bottom, torch.inf)
    for share in SHARES:
        spacing = ((top - bottom) * (share / (CODES - 1))).round().clamp(1, WIDEST)
        for move in MOVES:
            lowest = ((bottom + top) / 2 + (move - (CODES - 1) / 2) * spacing).round().clamp(-LEVELS, LEVELS)
            codes = ((groups - lowest) / spacing).round().clamp_min(0)
            codes = torch.minimum(codes, ((LEVELS - lowest) / spacing).floor().clamp_max(CODES - 1))
            found = (groups - lowest - spacing * codes).square().sum(-1, keepdim=True)
            better, tried = found < error, (codes, lowest, spacing)
            best = tuple(torch.where(better, new, old) for new, old in zip(tried, best or tried, strict=True))
            error = torch.where(better, found, error)
    codes, lowest, spacing = best
    low, high = codes.flatten(1).to(torch.uint8).chunk(2, 1)
    return {
        "weight": low | high << 4,
        "lowest": lowest.squeeze(-1).to(torch.int8),
        "spacing": spacing.squeeze(-1).to(torch.uint8),
        "scale": scale.squeeze(-1),
    }


def codes_of(weight: Tensor) -> Tensor:
    """Return the codes of an Int4Linear's weight: uint8 [O, G * GROUP]."""
    return torch.cat([weight & 0xF, weight >> 4], 1)


def unpack(weight: Tensor, lowest: Tensor, spacing: Tensor) -> Tensor:
    """Return the weights of an Int4Linear as int8 [O, G * GROUP]."""
    groups = codes_of(weight).unflatten(1, (-1, GROUP))
    # Sums of bytes modulo 256 are the same with and without sign.
    groups.mul_(spacing[:, :, None]).add_(lowest.view(torch.uint8)[:, :, None])
    return groups.flatten(1).view(torch.int8)
