"""Keys and values of the decoder, all preallocated: self-attention by row, cross-attention once per request, by slot.

L layers, R rows (one per live hypothesis), C slots (one per live request), H heads, T decoder positions, S encoder
positions, E size of a head.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from florence2.config import TextConfig
from florence2.engine.kernels import LANES, POSITIONS


class KVCache:
    """self_keys, self_values: [L, R, H, T, E]; cross_keys, cross_values: [L, C, H, S, E]; C = R.

    With `compiled`, for `kernels`, T, S and E are rounded up, and keys lie in vectors of neighbours: [L, R, H,
    T / POSITIONS, E, POSITIONS].

    All of the memory is taken at once, so that none is missing later. Zeros, since whatever lies behind a request's
    last position is read and masked, and must be finite.
    """

    def __init__(
        self, config: TextConfig, rows: int, dtype: torch.dtype, device: torch.device, *, compiled: bool = False
    ) -> None:
        self.rows, self.device, self.compiled = rows, device, compiled
        self.bytes_per_row = bytes_per_row(config, dtype)
        self.head_size = config.d_model // config.decoder_heads
        size, self.positions = self.head_size, config.max_positions
        if compiled:
            size, self.positions = -(-size // LANES) * LANES, -(-self.positions // POSITIONS) * POSITIONS

        def zeros(*of_a_head: int) -> Tensor:
            shape = (config.decoder_layers, rows, config.decoder_heads, *of_a_head)
            return torch.zeros(shape, dtype=dtype, device=device)

        keys = (self.positions // POSITIONS, size, POSITIONS) if compiled else (self.positions, size)
        self.self_keys, self.cross_keys = zeros(*keys), zeros(*keys)
        self.self_values, self.cross_values = zeros(self.positions, size), zeros(self.positions, size)
        self._free_slots = list(range(rows))  # a heap: the lowest first, so that live slots stay close together

    def take_slot(self) -> int:
        """For a request's cross-attention keys and values. There are as many as rows, so one is always free."""
        return heapq.heappop(self._free_slots)

    def free_slot(self, slot: int) -> None:
        heapq.heappush(self._free_slots, slot)

    @property
    def used_slots(self) -> int:
        return self.rows - len(self._free_slots)

    def write_encoder(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: [H, S, E]"""
        keys, values = self.laid_out(keys, values)
        self.cross_keys[layer, slot, :, : keys.shape[1]] = keys
        self.cross_values[layer, slot, :, : values.shape[1]] = values

    def laid_out(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[..., S, E] each -> the same numbers as they lie in the cache."""
        if not self.compiled:
            return keys, values
        missing = -self.head_size % LANES
        keys = F.pad(keys, (0, missing, 0, -keys.shape[-2] % POSITIONS))
        return keys.unflatten(-2, (-1, POSITIONS)).mT, F.pad(values, (0, missing))

    def clear(self, rows: range) -> None:
        """Takes numbers out that are none: those who get the rows next read behind their own, and mask it."""
        for cache in (self.self_keys, self.self_values):
            cache[:, rows.start : rows.stop] = 0

    def copy_rows(self, moves: Sequence[tuple[int, int]], positions: slice) -> None:
        """From row to row; all are read before any is written. Not for `kernels`, which do it themselves."""
        read, written = torch.tensor(moves, device=self.device).T
        for cache in (self.self_keys, self.self_values):
            cache[:, written, :, positions] = cache[:, read, :, positions]


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The same memory; bfloat16, which numpy does not know, as the integers of its bits."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def bytes_per_row(config: TextConfig, dtype: torch.dtype) -> int:
    """Keys and values of one hypothesis, and of a request's cross-attention: there may be as many.

    Base (6 layers, 1024 positions, 768 wide) in bfloat16: 4 * 6 * 1024 * 768 * 2 = 37,748,736.
    """
    return 4 * config.decoder_layers * config.max_positions * config.d_model * dtype.itemsize


def rows_within(budget: int, limit: int, config: TextConfig, dtype: torch.dtype) -> int:
    """How many rows fit into `budget` bytes: at least one, at most `limit`."""
    return max(1, min(limit, budget // bytes_per_row(config, dtype)))
