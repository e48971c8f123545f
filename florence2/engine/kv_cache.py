"""Keys and values of the decoder, all preallocated: self-attention by row, cross-attention once per request, by slot.

L layers, R rows (one per live hypothesis), C slots (one per live request), H heads, T decoder positions, S encoder
positions, E size of a head.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.config import TextConfig
from florence2.engine import kernels


class CacheDtypes(NamedTuple):
    own: torch.dtype  # of self-attention
    cross: torch.dtype


class KVCache:
    """self_keys, self_values: [L, R, H, T, E]; cross_keys: [L, C, H, S, E]; cross_values: [L, C, H, S, E]; C = R.

    With `lanes` the cross-attention's are laid out as `kernels` reads them, in vectors of neighbours: cross_keys
    [L, C, H, S / lanes, E, lanes], cross_values [L, C, H, E / lanes, S, lanes], with S, T and E rounded up.

    On CPU the memory is reserved at once and touched as far as it is used. Zeros, since whatever lies behind a
    request's last position is read and masked, and must be finite.
    """

    def __init__(
        self, config: TextConfig, rows: int, dtypes: CacheDtypes, device: torch.device, lanes: int | None = None
    ) -> None:
        self.rows, self.device, self.lanes = rows, device, lanes
        self.bytes_per_row = bytes_per_row(config, dtypes)
        self.head_size = config.d_model // config.decoder_heads
        wide, long = (-(-size // (lanes or 1)) * (lanes or 1) for size in (self.head_size, config.max_positions))

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((config.decoder_layers, rows, config.decoder_heads, *shape), dtype=dtype, device=device)

        self.self_keys, self.self_values = (zeros(dtypes.own, long, wide) for _ in range(2))
        keys_shape = (long // lanes, wide, lanes) if lanes else (long, wide)
        values_shape = (wide // lanes, long, lanes) if lanes else (long, wide)
        self.cross_keys, self.cross_values = zeros(dtypes.cross, *keys_shape), zeros(dtypes.cross, *values_shape)
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
        length, lanes = keys.shape[1], self.lanes
        if lanes:
            keys, values = (F.pad(new, (0, -self.head_size % lanes)) for new in (keys, values))
            keys = F.pad(keys, (0, 0, 0, -length % lanes)).unflatten(1, (-1, lanes)).mT
            values = values.unflatten(2, (-1, lanes)).transpose(1, 2)
            self.cross_keys[layer, slot, :, : keys.shape[1]] = keys
            self.cross_values[layer, slot, :, :, :length] = values
        else:
            self.cross_keys[layer, slot, :, :length] = keys
            self.cross_values[layer, slot, :, :length] = values

    def clear(self, rows: range) -> None:
        """Takes numbers out that are none: those who get the rows next read behind their own, and mask it."""
        for cache in (self.self_keys, self.self_values):
            cache[:, rows.start : rows.stop] = 0

    def copy_rows(self, sources: list[int], targets: list[int], positions: slice) -> None:
        """All sources are read before any target is written."""
        if self.lanes:
            for cache in (self.self_keys, self.self_values):
                kernels.copy_rows(cache.numpy(), np.array(sources), np.array(targets), positions.start, positions.stop)
            return
        read, written = (torch.tensor(rows, device=self.device) for rows in (sources, targets))
        for cache in (self.self_keys, self.self_values):
            cache[:, written, :, positions] = cache[:, read, :, positions]


def bytes_per_row(config: TextConfig, dtypes: CacheDtypes) -> int:
    """Keys and values of one hypothesis, and of a request's cross-attention: there may be as many.

    Base (6 layers, 1024 positions, 768 wide) in float32: 2 * 6 * 1024 * 768 * (4 + 4) = 75,497,472.
    """
    return 2 * config.decoder_layers * config.max_positions * config.d_model * sum(dtype.itemsize for dtype in dtypes)


def rows_within(budget: int, limit: int, config: TextConfig, dtypes: CacheDtypes) -> int:
    """How many rows fit into `budget` bytes: at least one, at most `limit`."""
    return max(1, min(limit, budget // bytes_per_row(config, dtypes)))
