"""The decoder's step on a CPU: packs a loaded `LanguageModel`'s weights for `kernels.decode` and runs it.

A step of base is some 500 operators to torch, each of which wakes threads and looks up shapes; here it is one call.
docs/adr/0006-compiled-decode-step.md has what that changed.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from florence2.engine import kernels
from florence2.engine.attention import Span
from florence2.engine.beam import Candidate, Search
from florence2.engine.kernels import LANES, PAIRS, QUADS, Batch, Cache, Embedding, Norm, Product, Scratch, Weights
from florence2.engine.kv_cache import KVCache, as_array
from florence2.engine.linear import Int8Linear, Linear


def padded(size: int) -> int:
    """Whole vectors."""
    return -(-size // LANES) * LANES


class CompiledDecoder:
    """Made once, of layers as they were loaded, not packed yet. Not for several callers at a time."""

    def __init__(
        self, shared: nn.Embedding, embed_scale: float, decoder: Any, head: Linear | nn.Embedding, threads: int
    ) -> None:
        """decoder: a `model.Side` of `model.DecoderLayer`s."""
        attention = decoder.layers[0].self_attn
        self.d_model = attention.q_proj.weight.shape[1]
        self.heads = attention.heads
        self.head_size = padded(self.d_model // self.heads)
        self.vocabulary = len(head.weight)
        self.threads = min(threads, self.heads)
        self._weights = self._pack(shared, embed_scale, decoder, head)
        self._cache: KVCache | None = None
        self._helpers: list[SimpleQueue[tuple[Any, ...] | None]] = [SimpleQueue() for _ in range(1, self.threads)]
        for thread, steps in enumerate(self._helpers, 1):
            Thread(target=_help, args=(thread, self.threads, steps), name=f"decode-{thread}", daemon=True).start()
            weakref.finalize(self, steps.put, None)

    def decode(
        self, searches: Sequence[Search], spans: Sequence[Span], cache: KVCache, known_tokens: int
    ) -> list[list[Candidate]]:
        """The candidates of each search's `advance`, best first, as `scoring.candidates` finds them."""
        if cache is not self._cache:
            self._cache, self._cache_arrays, self.scratch = cache, cache_arrays(cache), self._make_scratch(cache)
        batch = batch_of(searches, spans)
        step = (np.zeros(1, np.int64), self._weights, known_tokens, self._cache_arrays, batch, self.scratch)
        for steps in self._helpers:
            steps.put(step)
        kernels.decode(0, self.threads, *step)  # ends when all have done their share
        return self._candidates(searches)

    def _candidates(self, searches: Sequence[Search]) -> list[list[Candidate]]:
        rows = sum(len(search.running) for search in searches)
        parts = self.scratch.sums, self.scratch.places, self.scratch.log_probs
        best = zip(*(part[: 2 * rows].tolist() for part in parts), strict=True)
        found = []
        for search in searches:
            theirs = [
                Candidate(score, place // self.vocabulary, place % self.vocabulary, log_prob)
                for score, place, log_prob in itertools.islice(best, 2 * len(search.running))
            ]
            if len(search.running) == 1:
                _, beam, token, log_prob = theirs[0]
                theirs = [Candidate(search.running[0].score + log_prob, beam, token, log_prob)]
            found.append(theirs)
        return found

    def _make_scratch(self, cache: KVCache) -> Scratch:
        weights, rows, width = self._weights, cache.rows, self.heads * self.head_size
        inner = weights.widen.bias.shape[1]
        each = self.threads, rows
        return Scratch(
            x=_zeros(*each, self.d_model),
            inputs=_zeros(*each, padded(max(inner, width, self.d_model)), dtype=torch.uint16),
            scales=_zeros(*each),
            scores=_zeros(*each, cache.positions),
            moving=_zeros(*each, cache.positions, self.head_size, dtype=cache.self_keys.dtype),
            projected=_zeros(rows, 3 * width),
            mixed=_zeros(rows, width),
            wide=_zeros(rows, inner),
            narrow=_zeros(rows, padded(self.d_model)),
            logits=_zeros(rows, padded(self.vocabulary)),
            largest=_zeros(rows),
            log_sums=_zeros(rows),
            sums=_zeros(2 * rows),
            places=_zeros(2 * rows, dtype=torch.int64),
            log_probs=_zeros(2 * rows),
        )

    def _pack(self, shared: nn.Embedding, embed_scale: float, decoder: Any, head: Linear | nn.Embedding) -> Weights:
        layers = decoder.layers
        scale = layers[0].self_attn.scale
        outputs = _Heads(self.heads, self.head_size)
        own, asked = [layer.self_attn for layer in layers], [layer.encoder_attn for layer in layers]
        queries, keys, values, mixed = (
            [getattr(each, name) for each in own] for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        )
        return Weights(
            embedding=Embedding(
                tokens=_table(shared.weight),
                positions=_table(decoder.positions),
                scale=np.float32(embed_scale),
                norm=_norm([decoder.layernorm_embedding]),
            ),
            project_in=_product(
                _stacked(queries, rows=outputs, factor=scale),
                _stacked(keys, rows=outputs),
                _stacked(values, rows=outputs),
            ),
            project_out=_product(_stacked(mixed, columns=outputs)),
            self_norm=_norm([layer.self_attn_layer_norm for layer in layers]),
            ask_encoder=_product(_stacked([each.q_proj for each in asked], rows=outputs, factor=scale)),
            answer_encoder=_product(_stacked([each.out_proj for each in asked], columns=outputs)),
            encoder_norm=_norm([layer.encoder_attn_layer_norm for layer in layers]),
            widen=_product(_stacked([layer.fc1 for layer in layers])),
            narrow=_product(_stacked([layer.fc2 for layer in layers])),
            final_norm=_norm([layer.final_layer_norm for layer in layers]),
            head=_product(_stacked([head])),
        )


def _help(thread: int, threads: int, steps: SimpleQueue[tuple[Any, ...] | None]) -> None:
    """Does its share of every step, until there are no more."""
    while (step := steps.get()) is not None:
        kernels.decode(thread, threads, *step)
        del step  # with it go the arrays of a model that nobody needs any more


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> NDArray[Any]:
    """Aligned to cache lines, which numpy's arrays are not: a vector that lies across two takes two reads."""
    return as_array(torch.zeros(shape, dtype=dtype))


Arrange = Callable[[Tensor, int], Tensor]


class _Heads:
    """Puts zeros behind each head, so that its size is one of whole vectors."""

    def __init__(self, heads: int, size: int) -> None:
        self.heads, self.size = heads, size

    def __call__(self, tensor: Tensor, axis: int) -> Tensor:
        by_head = tensor.unflatten(axis, (self.heads, -1))
        return _fill(by_head, axis + 1, self.size).flatten(axis, axis + 1)


def _whole(tensor: Tensor, axis: int) -> Tensor:
    """Puts zeros behind the end."""
    return _fill(tensor, axis, padded(tensor.shape[axis]))


def _fill(tensor: Tensor, axis: int, size: int) -> Tensor:
    """With zeros up to `size`."""
    missing = size - tensor.shape[axis]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _inputs(tensor: Tensor, axis: int) -> Tensor:
    """Puts zeros behind, up to as many as are multiplied together."""
    count, _ = _together(tensor)
    return _fill(tensor, axis, -(-tensor.shape[axis] // count) * count)


def _together(weight: Tensor) -> tuple[int, torch.dtype]:
    """How many weights of an output are multiplied at once, and the type that so many have together."""
    together = {torch.int8: (QUADS, torch.int32), torch.bfloat16: (PAIRS, torch.uint32)}
    return together.get(weight.dtype, (1, weight.dtype))


def _product(*side_by_side: list[Tensor]) -> Product:
    """Of `_stacked` layers."""
    return Product(*(as_array(torch.cat(part, 1)) for part in zip(*side_by_side, strict=True)))


def _stacked(
    layers: Sequence[Any], *, rows: Arrange = _whole, columns: Arrange = _inputs, factor: float = 1.0
) -> list[Tensor]:
    """A Product's parts. rows, columns: how outputs and inputs are padded; factor: what outputs are multiplied by."""
    packed = (_packed(layer, rows, columns, factor) for layer in layers)
    return [torch.stack(part) for part in zip(*packed, strict=True)]


def _packed(layer: Any, rows: Arrange, columns: Arrange, factor: float) -> tuple[Tensor, ...]:
    weight = columns(rows(layer.weight.data, 0), 1)  # [O, I]
    outputs = len(weight)
    if isinstance(layer, Int8Linear):
        scale = rows(layer.scale, 0)
        offset = kernels.ZERO_POINT * weight.sum(1, dtype=torch.float32)
    else:
        scale, offset = torch.ones(outputs), torch.zeros(outputs)
        if weight.dtype == torch.float16:
            weight = weight.float()
    count, dtype = _together(weight)
    by_vectors = weight.reshape(outputs // LANES, LANES, -1, count).transpose(1, 2).contiguous()
    weights = by_vectors.view(dtype)
    bias = getattr(layer, "bias", None)
    biases = torch.zeros(outputs) if bias is None else rows(bias.data, 0).float()
    return weights.flatten(), biases * factor, scale * factor, offset


def _table(weight: Tensor) -> NDArray[Any]:
    return as_array(weight.data.float() if weight.dtype == torch.float16 else weight.data)


def _norm(norms: Sequence[nn.LayerNorm]) -> Norm:
    return Norm(
        *(torch.stack([getattr(norm, name).data for norm in norms]).float().numpy() for name in ("weight", "bias"))
    )


def cache_arrays(cache: KVCache) -> Cache:
    parts = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values)
    return Cache(*(as_array(part) for part in parts))


def batch_of(searches: Sequence[Search], spans: Sequence[Span]) -> Batch:
    constraints = [constraint for search in searches for constraint in search.constraints()]
    banned = [token for constraint in constraints for token in constraint.banned]
    return Batch(
        tokens=np.array([token for search in searches for token in search.last_tokens]),
        rows=np.array([row for span in spans for row in span.rows]),
        positions=np.array([span.position for span in spans for _ in span.rows]),
        starts=_starts(len(span.rows) for span in spans),
        slots=np.array([span.slot for span in spans]),
        lengths=np.array([span.encoder_length for span in spans]),
        moves=np.array([move for span in spans for move in span.moves], np.int64).reshape(-1, 2),
        move_starts=_starts(len(span.moves) for span in spans),
        kept=np.array([span.kept for span in spans]),
        scores=np.array([hypothesis.score for search in searches for hypothesis in search.running], np.float32),
        forced=np.array([-1 if each.forced is None else each.forced for each in constraints]),
        banned=np.array(banned, np.int64),
        banned_starts=_starts(len(each.banned) for each in constraints),
    )


def _starts(counts: Iterable[int]) -> NDArray[np.int64]:
    """Where each group begins that has so many, and where the last one ends."""
    return np.array(list(itertools.accumulate(counts, initial=0)))
