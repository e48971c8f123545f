"""Keys and values of the decoder as the kernels attend to them.

L layers, R rows, H heads, T positions and E size of a head, both padded, S positions that are not.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.config import TextConfig
from florence2.engine.cpu.kernels.layout import POSITIONS, CacheArrays
from florence2.engine.cpu.packing import as_array, whole_vectors


class PackedCache:
    """Keys [L, R, H, T / POSITIONS, E, POSITIONS] and values [L, R, H, T, E], by row and by slot.

    Zeros at first, since what lies past a request's last position is read and masked, and must be finite. The system
    provides the memory when it is first written, so positions that no request reaches take none.
    """

    def __init__(self, config: TextConfig, rows: int, dtype: torch.dtype) -> None:
        self.head_size = config.d_model // config.decoder_heads
        self.positions = -(-config.max_positions // POSITIONS) * POSITIONS
        by_head = (config.decoder_layers, rows, config.decoder_heads)
        keys = (*by_head, self.positions // POSITIONS, whole_vectors(self.head_size), POSITIONS)
        values = (*by_head, self.positions, whole_vectors(self.head_size))
        self.self_keys, self.self_values, self.cross_keys, self.cross_values = (
            _zeros_on_demand(shape, dtype) for shape in (keys, values, keys, values)
        )

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


def _zeros_on_demand(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that begin at a page. Huge pages would bring in the memory of positions around those written."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
