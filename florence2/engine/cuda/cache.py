"""Keys and values of the decoder as torch attends to them.

L layers, R rows, H heads, T positions, E size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florence2.config import TextConfig


class PaddedCache:
    """self_keys, self_values: [L, R, H, T, E] by row; cross_keys, cross_values: the same by slot.

    Zeros at first, since what lies past a request's last position is read and masked, and must be finite.
    """

    def __init__(self, config: TextConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.positions, self.device = rows, config.max_positions, device
        heads = config.decoder_heads
        shape = (config.decoder_layers, rows, heads, config.max_positions, config.d_model // heads)
        self.self_keys, self.self_values, self.cross_keys, self.cross_values = (
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(4)
        )

    def write_encoder(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Write a request's cross-attention keys and values, [H, S, E] each with S <= T."""
        self.cross_keys[layer, slot, :, : keys.shape[1]] = keys
        self.cross_values[layer, slot, :, : values.shape[1]] = values

    def clear(self, rows: range) -> None:
        """Zero the rows' keys and values."""
        for cache in (self.self_keys, self.self_values):
            cache[:, rows.start : rows.stop] = 0
