"""Keys and values of the decoder as torch attends to them.

L layers, R rows, H heads, T decoder and S encoder positions, E size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florence2.config import ModelConfig


class PaddedCache:
    """self_keys, self_values: [L, R, H, T, E] by row; cross_keys, cross_values: [L, R, H, S, E] by slot.

    Zeros at first, since what lies past a request's last position is read and masked, and must be finite.
    """

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        text, self.rows, self.device = config.text, rows, device
        self.positions, self.encoder_positions = text.max_positions, config.encoder_positions
        heads, size = text.decoder_heads, text.d_model // text.decoder_heads
        self.self_keys, self.self_values, self.cross_keys, self.cross_values = (
            torch.zeros((text.decoder_layers, rows, heads, positions, size), dtype=dtype, device=device)
            for positions in (self.positions, self.positions, self.encoder_positions, self.encoder_positions)
        )

    def write_encoder(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Write a request's cross-attention keys and values, [H, S, E] each, or shorter."""
        self.cross_keys[layer, slot, :, : keys.shape[1]] = keys
        self.cross_values[layer, slot, :, : values.shape[1]] = values

    def clear(self, rows: range) -> None:
        """Zero the rows' keys and values."""
        for cache in (self.self_keys, self.self_values):
            cache[:, rows.start : rows.stop] = 0
