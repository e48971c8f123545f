"""Keys and values of the decoder: self-attention preallocated by row, cross-attention once per request.

L layers, R rows (one per live hypothesis), H heads, T decoder positions, S encoder positions, E size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from florence2.config import TextConfig


@dataclass(frozen=True)
class CrossKV:
    """A request's cross-attention keys and values, shared by its beams."""

    keys: list[Tensor]  # L of [H, S, E]
    values: list[Tensor]  # L of [H, S, E]


class SelfKV:
    """keys, values: [L, R, H, T, E]. Memory is reserved at once and, on CPU, touched only as far as it is used."""

    def __init__(self, config: TextConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        head_dim = config.d_model // config.decoder_heads
        shape = (config.decoder_layers, rows, config.decoder_heads, config.max_positions, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def bytes_per_row(self) -> int:
        return 2 * self.keys[:, 0].numel() * self.keys.element_size()

    def reorder(self, rows: range, parents: list[int], length: int) -> None:
        """Row i of `rows` goes on with the first `length` positions of its parent, numbered within `rows`."""
        if parents == list(range(len(rows))):
            return
        index = torch.tensor([rows.start + parent for parent in parents], device=self.keys.device)
        for cache in (self.keys, self.values):
            cache[:, rows.start : rows.stop, :, :length] = cache[:, index, :, :length]
