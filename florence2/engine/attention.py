"""Which rows of a decode step look at which keys and values, and torch's attention over them.

`PaddedStep` has shapes that depend on its buckets alone, which a CUDA graph can replay; see `graphs`. On a CPU
`kernels` attends.

R rows of a step, K rows (beams) of a request, H heads, E size of a head, T decoder and S encoder positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.engine.kv_cache import KVCache

MINIMUM_BUCKET = 64  # positions


@dataclass(frozen=True)
class Span:
    """A live request's share of a step."""

    rows: range  # of the cache; their number is K
    slot: int  # of its cross-attention keys and values
    position: int  # of the token being decoded
    encoder_length: int  # positions of the slot that are its own
    moves: Sequence[tuple[int, int]] = ()  # first of all, one row goes on from another: from where, to where
    kept: int = 0  # positions from the beginning that the moving rows have in common


def bucket(length: int, limit: int) -> int:
    """The next power of two, at least MINIMUM_BUCKET and at most `limit`."""
    return min(limit, max(MINIMUM_BUCKET, 1 << (length - 1).bit_length()))


class PaddedStep:
    """Rows 0 to `rows` of the cache, live or not, over as many positions as the buckets have.

    Its tensors stay where they are, and nothing depends on their values but numbers: a graph of it can be replayed.
    """

    def __init__(self, cache: KVCache, rows: int, length: int, encoder_length: int) -> None:
        self.cache, self.rows, self.length, self.encoder_length = cache, rows, length, encoder_length
        self.tokens, self.positions, self._slots, self._own_length = torch.zeros(
            (4, rows), dtype=torch.long, device=cache.device
        )
        self._row_index = torch.arange(rows, device=cache.device)

    def fill(self, tokens: Sequence[int], spans: Sequence[Span]) -> None:
        """tokens: in the order of the spans' rows. Rows that are not live decode something that nobody reads."""
        values = torch.zeros((4, self.rows), dtype=torch.long)
        values[3] = 1
        place = 0
        for span in spans:
            rows = slice(span.rows.start, span.rows.stop)
            values[0, rows] = torch.tensor(tokens[place : place + len(span.rows)])
            values[1, rows], values[2, rows], values[3, rows] = span.position, span.slot, span.encoder_length
            place += len(span.rows)
            if span.moves:
                self.cache.copy_rows(span.moves, slice(span.kept, span.position))
        for buffer, value in zip((self.tokens, self.positions, self._slots, self._own_length), values, strict=True):
            buffer.copy_(value)

    def attend_to_self(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cached_keys, cached_values = self.cache.self_keys[layer], self.cache.self_values[layer]
        cached_keys[self._row_index, :, self.positions] = keys
        cached_values[self._row_index, :, self.positions] = values
        seen = self._up_to(self.length, self.positions + 1)
        part = (slice(self.rows), slice(None), slice(self.length))
        return _attend_masked(queries, cached_keys[part], cached_values[part], seen)

    def attend_to_encoder(self, layer: int, queries: Tensor) -> Tensor:
        length = self.encoder_length
        keys, values = (
            cached[layer, :, :, :length].index_select(0, self._slots)
            for cached in (self.cache.cross_keys, self.cache.cross_values)
        )
        return _attend_masked(queries, keys, values, self._up_to(length, self._own_length))

    def _up_to(self, length: int, own: Tensor) -> Tensor:
        """[R, 1, 1, length]: true below each row's own length."""
        return (torch.arange(length, device=own.device) < own[:, None])[:, None, None]


def _attend_masked(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """[R, H, E] over [R, H, S, E] -> [R, H, E]"""
    return F.scaled_dot_product_attention(queries.unsqueeze(2), keys, values, attn_mask=seen, scale=1.0).squeeze(2)
