"""Attention of one decode step over the cache: which rows look at which keys and values. Built anew for every step.

`ViewedStep` reads views of the cache and so nothing but what live requests wrote; it suits a CPU. `PaddedStep` has
shapes that depend on its buckets alone, which a CUDA graph can replay; see `graphs`.

R rows of a step, N requests or rows of a run, K rows (beams) of a request, H heads, E size of a head, T decoder and S
encoder positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class Step(Protocol):
    """What a decoder asks for. Queries come scaled; they and the answers are [R, H, E]."""

    positions: Tensor  # [R], of the tokens being decoded

    def attend_to_self(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Writes keys and values [R, H, E] at every row's position, then attends to all up to there."""

    def attend_to_encoder(self, layer: int, queries: Tensor) -> Tensor: ...


def bucket(length: int, limit: int) -> int:
    """The next power of two, at least MINIMUM_BUCKET and at most `limit`."""
    return min(limit, max(MINIMUM_BUCKET, 1 << (length - 1).bit_length()))


@dataclass(frozen=True)
class Run:
    """Neighbours in the batch and in the cache, attended to in one product."""

    batch: slice
    cache: slice
    length: int  # positions read
    bias: Tensor | None  # [N * H, 1, length]: -inf behind each one's own length; None if all are as long as the run


class ViewedStep:
    """Requests that lie side by side in the cache are attended to together, up to the longest one's length."""

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        """spans: ordered by rows, which is the order of the batch."""
        self.cache = cache
        self.positions = torch.tensor([span.position for span in spans for _ in span.rows], device=cache.device)
        self._rows = torch.tensor([row for span in spans for row in span.rows], device=cache.device)
        self._self_runs = list(self._find_self_runs(spans))
        by_slot = sorted(spans, key=lambda span: span.slot)
        self._order = None if by_slot == list(spans) else self._orders(spans, by_slot)
        self._cross_runs = list(self._find_cross_runs(by_slot))

    def attend_to_self(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        answers = []
        for run in self._self_runs:
            cached_keys, cached_values = (
                self._write(run, cache[layer], new)
                for cache, new in ((self.cache.self_keys, keys), (self.cache.self_values, values))
            )
            answers.append(_attend(queries[run.batch].unsqueeze(2), cached_keys, cached_values, run.bias))
        return _joined(answers).squeeze(2)

    def _write(self, run: Run, cached: Tensor, new: Tensor) -> Tensor:
        """What the run attends to, [N, H, length, E], with the step's own keys or values in it."""
        if run.bias is None:  # all at one position: a slice, which takes a tenth of the time of an index
            cached[run.cache, :, run.length - 1] = new[run.batch]
        else:
            cached[self._rows[run.batch], :, self.positions[run.batch]] = new[run.batch]
        return cached[run.cache, :, : run.length]

    def attend_to_encoder(self, layer: int, queries: Tensor) -> Tensor:
        cached_keys, cached_values = self.cache.cross_keys[layer], self.cache.cross_values[layer]
        if self._order:
            queries = queries[self._order[0]]
        answers = []
        for run in self._cross_runs:
            requests = run.cache.stop - run.cache.start
            answer = _attend(
                queries[run.batch].unflatten(0, (requests, -1)).transpose(1, 2),  # [N, H, K, E]
                cached_keys[run.cache, :, : run.length],
                cached_values[run.cache, :, : run.length],
                run.bias,
            )
            answers.append(answer.transpose(1, 2).flatten(0, 1))  # [N * K, H, E]
        answers_in_order = _joined(answers)
        return answers_in_order[self._order[1]] if self._order else answers_in_order

    def _find_self_runs(self, spans: Sequence[Span]) -> Iterator[Run]:
        """Rows side by side whose lengths share a bucket, so that no more than half of what is read is masked."""
        limit, start = self.cache.self_keys.shape[3], 0
        for group in _neighbours(spans, _adjacent_rows, lambda span: bucket(span.position + 1, limit)):
            lengths = [span.position + 1 for span in group for _ in span.rows]
            yield self._run(start, len(lengths), group[0].rows.start, lengths)
            start += len(lengths)

    def _find_cross_runs(self, by_slot: Sequence[Span]) -> Iterator[Run]:
        """Slots side by side with as many beams."""
        start = 0
        for group in _neighbours(by_slot, _adjacent_slots, lambda span: len(span.rows)):
            rows = len(group) * len(group[0].rows)
            yield self._run(start, rows, group[0].slot, [span.encoder_length for span in group])
            start += rows

    def _run(self, batch: int, rows: int, cached: int, lengths: list[int]) -> Run:
        """`rows` of the batch from `batch` on over as many entries of the cache as there are lengths."""
        bias = _bias(lengths, self.cache) if len(set(lengths)) > 1 else None
        return Run(slice(batch, batch + rows), slice(cached, cached + len(lengths)), max(lengths), bias)

    def _orders(self, spans: Sequence[Span], by_slot: Sequence[Span]) -> tuple[Tensor, Tensor]:
        """The batch's rows in the order of the slots, and the way back."""
        firsts = itertools.accumulate((len(span.rows) for span in spans), initial=0)
        first = dict(zip(spans, firsts, strict=False))
        there = torch.tensor([first[span] + beam for span in by_slot for beam in range(len(span.rows))])
        return there.to(self.cache.device), there.argsort().to(self.cache.device)


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
        keys, values = (
            cached[layer, :, :, : self.encoder_length].index_select(0, self._slots)
            for cached in (self.cache.cross_keys, self.cache.cross_values)
        )
        return _attend_masked(queries, keys, values, self._up_to(self.encoder_length, self._own_length))

    def _up_to(self, length: int, own: Tensor) -> Tensor:
        """[R, 1, 1, length]: true below each row's own length."""
        return (torch.arange(length, device=own.device) < own[:, None])[:, None, None]


def _attend_masked(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """[R, H, E] over [R, H, S, E] -> [R, H, E]"""
    return F.scaled_dot_product_attention(queries.unsqueeze(2), keys, values, attn_mask=seen, scale=1.0).squeeze(2)


def _adjacent_rows(one: Span, other: Span) -> bool:
    return one.rows.stop == other.rows.start


def _adjacent_slots(one: Span, other: Span) -> bool:
    return one.slot + 1 == other.slot


def _neighbours(
    spans: Sequence[Span], adjacent: Callable[[Span, Span], bool], kind: Callable[[Span], int]
) -> Iterator[list[Span]]:
    """Splits where two are not adjacent or not of one kind."""
    group: list[Span] = []
    for span in spans:
        if group and not (adjacent(group[-1], span) and kind(group[-1]) == kind(span)):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def _bias(lengths: list[int], cache: KVCache) -> Tensor:
    """[N * H, 1, longest]"""
    own = torch.tensor(lengths, device=cache.device)[:, None]
    hidden = torch.arange(max(lengths), device=cache.device) >= own
    bias = torch.zeros(hidden.shape, dtype=cache.dtype, device=cache.device).masked_fill_(hidden, -torch.inf)
    return bias.repeat_interleave(cache.heads, 0).unsqueeze(1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """[N, H, K, E] over [N, H, S, E] -> [N, H, K, E]. Two products: fused attention is slow for few queries on CPU."""
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1).mT
    scores = torch.bmm(flat_queries, flat_keys) if bias is None else torch.baddbmm(bias, flat_queries, flat_keys)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).unflatten(0, queries.shape[:2])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
