"""Keys and values of the decoder, all preallocated: self-attention by row, cross-attention once per request, by slot.

L layers, R rows (one per live hypothesis), C slots (one per live request), H heads, T decoder positions, S encoder
positions, E size of a head.
"""

from __future__ import annotations

import heapq

import torch

from florence2.config import TextConfig


class KVCache:
    """self_keys, self_values: [L, R, H, T, E]; cross_keys, cross_values: [L, C, H, S, E], with as many slots as rows.

    On CPU the memory is reserved at once and touched as far as it is used. Zeros, since whatever lies behind a
    request's last position is read and masked, and must be finite.
    """

    def __init__(self, config: TextConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.dtype, self.device = rows, dtype, device
        self.heads = config.decoder_heads
        self.bytes_per_row = bytes_per_row(config, dtype)
        shape = (config.decoder_layers, rows, self.heads, config.max_positions, config.d_model // self.heads)
        self.self_keys, self.self_values, self.cross_keys, self.cross_values = (
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(4)
        )
        self._free_slots = list(range(rows))  # a heap: the lowest first, so that live slots stay close together

    def take_slot(self) -> int:
        """For a request's cross-attention keys and values. There are as many as rows, so one is always free."""
        return heapq.heappop(self._free_slots)

    def free_slot(self, slot: int) -> None:
        heapq.heappush(self._free_slots, slot)

    @property
    def used_slots(self) -> int:
        return self.rows - len(self._free_slots)

    def clear(self, rows: range) -> None:
        """Takes numbers out that are none: those who get the rows next read behind their own, and mask it."""
        for cache in (self.self_keys, self.self_values):
            cache[:, rows.start : rows.stop] = 0

    def copy_rows(self, sources: list[int], targets: list[int], positions: slice) -> None:
        """All sources are read before any target is written."""
        read, written = (torch.tensor(rows, device=self.device) for rows in (sources, targets))
        for cache in (self.self_keys, self.self_values):
            cache[:, written, :, positions] = cache[:, read, :, positions]


def bytes_per_row(config: TextConfig, dtype: torch.dtype) -> int:
    """Keys and values of one hypothesis, and as much again for a request's cross-attention: there may be as many.

    Base (6 layers, 1024 positions, 768 wide) in float32: 2 * 2 * 6 * 1024 * 768 * 4 = 75,497,472.
    """
    return 2 * 2 * config.decoder_layers * config.max_positions * config.d_model * dtype.itemsize


def rows_within(budget: int, limit: int, config: TextConfig, dtype: torch.dtype) -> int:
    """How many rows fit into `budget` bytes: at least one, at most `limit`."""
    return max(1, min(limit, budget // bytes_per_row(config, dtype)))
