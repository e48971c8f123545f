"""Keys and values of the decoder as the kernels attend to them.

L layers, R rows, H heads, T decoder and S encoder positions and E size of a head, padded.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.config import ModelConfig
from florence2.engine.cpu.kernels.layout import POSITIONS, CacheArrays
from florence2.engine.cpu.packing import as_array, whole_vectors


class PackedCache:
    """Keys [L, R, H, T / POSITIONS, E, POSITIONS] and values [L, R, H, T, E] by row, and by slot with S for T.

    Zeros at first, since what lies past a request's last position is read and masked, and must be finite. The system
    provides the memory when it is first written, so positions that no request reaches take none.
    """

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype) -> None:
        text = config.text
        self.head_size = text.d_model // text.decoder_heads
        self.positions, self.encoder_positions = map(_whole_blocks, (text.max_positions, config.encoder_positions))
        by_head, size = (text.decoder_layers, rows, text.decoder_heads), whole_vectors(self.head_size)

        def zeros(positions: int) -> tuple[Tensor, Tensor]:
            keys, values = (positions // POSITIONS, size, POSITIONS), (positions, size)
            return _zeros_on_demand((*by_head, *keys), dtype), _zeros_on_demand((*by_head, *values), dtype)

        self.self_keys, self.self_values = zeros(self.positions)
        self.cross_keys, self.cross_values = zeros(self.encoder_positions)

    def write_encoder(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Write a request's cross-attention keys and values, [H, S, E] each, unpadded."""
        keys, values = self.laid_out(keys, values)
        self.cross_keys[layer, slot, :, : keys.shape[1]] = keys
        self.cross_values[layer, slot, :, : values.shape[1]] = values

    def laid_out(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return [..., S, E] each, unpadded, in the order of the cache."""
        missing = whole_vectors(self.head_size) - self.head_size
        keys = F.pad(keys, (0, missing, 0, -keys.shape[-2] % POSITIONS))
        return keys.unflatten(-2, (-1, POSITIONS)).mT, F.pad(values, (0, missing))

    def clear(self, rows: range) -> None:
        """Zero the rows' keys and values."""
        for cache in (self.self_keys, self.self_values):
            cache[:, rows.start : rows.stop] = 0

    def arrays(self) -> CacheArrays:
        """Return the same memory for the kernels."""
        return CacheArrays(*map(as_array, (self.self_keys, self.self_values, self.cross_keys, self.cross_values)))


def _whole_blocks(positions: int) -> int:
    return -(-positions // POSITIONS) * POSITIONS


def _zeros_on_demand(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that begin at a page. Huge pages would bring in the memory of positions around those written."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
