"""The decoder's step on a CPU: packs a loaded `LanguageModel`'s weights for `kernels.decode` and runs it.

A step of base is some 500 operators to torch, each of which wakes threads and looks up shapes; here it is one call.
docs/adr/0006-a-compiled-step.md has what that changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from florence2.engine import kernels
from florence2.engine.attention import Span
from florence2.engine.kernels import LANES, QUADS, Batch, Cache, Norm, Product, Scratch, Weights
from florence2.engine.kv_cache import KVCache
from florence2.engine.linear import Int8Linear, Linear


def padded(size: int) -> int:
    """Whole vectors."""
    return -(-size // LANES) * LANES


class CompiledDecoder:
    """Made once, of layers as they were loaded, not packed yet. Not for several callers at a time."""

    def __init__(self, layers: Sequence[Any], head: Linear | nn.Embedding, threads: int) -> None:
        """layers: `model.DecoderLayer`s."""
        attention = layers[0].self_attn
        self.d_model = attention.q_proj.weight.shape[1]
        self.heads = attention.heads
        self.head_size = padded(self.d_model // self.heads)
        self.vocabulary = len(head.weight)
        self.threads = min(threads, self.heads)
        self._weights = self._pack(layers, head)
        self._scratch: Scratch | None = None
        self._pool = ThreadPoolExecutor(self.threads - 1, "decode") if self.threads > 1 else None

    def decode(self, embedded: Tensor, spans: Sequence[Span], cache: KVCache) -> Tensor:
        """embedded: float32 [R, D], the rows in the order of the spans' -> float32 logits [R, V]"""
        rows = len(embedded)
        if self._scratch is None:
            self._scratch = self._make_scratch(cache)
        self._scratch.x[:, :rows] = embedded.numpy()
        logits = np.empty((rows, padded(self.vocabulary)), np.float32)
        shared = (np.zeros(1, np.int64), self._weights, cache_arrays(cache), batch_of(spans), self._scratch, logits)
        others = [
            self._pool.submit(kernels.decode, thread, self.threads, *shared)  # type: ignore[union-attr]
            for thread in range(1, self.threads)
        ]
        kernels.decode(0, self.threads, *shared)
        for other in others:
            other.result()
        return torch.from_numpy(logits)[:, : self.vocabulary]

    def _make_scratch(self, cache: KVCache) -> Scratch:
        weights, rows, width = self._weights, cache.rows, self.heads * self.head_size
        inner = weights.widen.bias.shape[1]
        each, floats = (self.threads, rows), np.float32
        return Scratch(
            x=np.zeros((*each, self.d_model), floats),
            bytes=np.zeros((*each, padded(max(inner, width, self.d_model))), np.uint8),
            scales=np.zeros(each, floats),
            scores=np.zeros((*each, cache.self_keys.shape[3]), floats),
            byte_sums=np.zeros((*each, LANES), np.int32),
            projected=np.zeros((rows, 3 * width), floats),
            mixed=np.zeros((rows, width), floats),
            wide=np.zeros((rows, inner), floats),
            narrow=np.zeros((rows, padded(self.d_model)), floats),
        )

    def _pack(self, layers: Sequence[Any], head: Linear | nn.Embedding) -> Weights:
        scale = layers[0].self_attn.scale
        outputs = _Heads(self.heads, self.head_size)
        own, asked = [layer.self_attn for layer in layers], [layer.encoder_attn for layer in layers]
        queries, keys, values, mixed = (
            [getattr(each, name) for each in own] for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        )
        return Weights(
            project_in=_side_by_side(
                _product(queries, rows=outputs, factor=scale),
                _product(keys, rows=outputs),
                _product(values, rows=outputs),
            ),
            project_out=_product(mixed, columns=outputs),
            self_norm=_norm([layer.self_attn_layer_norm for layer in layers]),
            ask_encoder=_product([each.q_proj for each in asked], rows=outputs, factor=scale),
            answer_encoder=_product([each.out_proj for each in asked], columns=outputs),
            encoder_norm=_norm([layer.encoder_attn_layer_norm for layer in layers]),
            widen=_product([layer.fc1 for layer in layers]),
            narrow=_product([layer.fc2 for layer in layers]),
            final_norm=_norm([layer.final_layer_norm for layer in layers]),
            head=_product([head]),
        )


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
    """Only int8 inputs are taken by fours."""
    return _fill(tensor, axis, -(-tensor.shape[axis] // QUADS) * QUADS) if tensor.dtype == torch.int8 else tensor


def _product(
    layers: Sequence[Any], *, rows: Arrange = _whole, columns: Arrange = _inputs, factor: float = 1.0
) -> Product:
    """rows, columns: how outputs and inputs are padded. factor: what the outputs are multiplied by."""
    parts = [_one_product(layer, rows, columns, factor) for layer in layers]
    return Product(*(np.stack(part) for part in zip(*parts, strict=True)))


def _one_product(layer: Any, rows: Arrange, columns: Arrange, factor: float) -> Product:
    weight = columns(rows(layer.weight.data, 0), 1)  # [O, I]
    outputs = len(weight)
    bias = getattr(layer, "bias", None)
    offset_to_sums = torch.zeros(outputs)
    scale = torch.ones(outputs)
    if isinstance(layer, Int8Linear):
        scale = rows(layer.scale, 0)
        offset_to_sums = kernels.ZERO_POINT * weight.sum(1, dtype=torch.float32)
        packed = weight.reshape(outputs // LANES, LANES, -1, QUADS).permute(0, 2, 1, 3)
    else:
        packed = weight.reshape(outputs // LANES, LANES, -1).transpose(1, 2)
    whole_bias = torch.zeros(outputs) if bias is None else rows(bias.data, 0)
    small = (whole_bias.float() * factor, scale * factor, offset_to_sums)
    return Product(_as_array(packed.contiguous().flatten()), *(tensor.numpy() for tensor in small))


def _as_array(tensor: Tensor) -> NDArray[Any]:
    """bfloat16, which numpy does not know, as the integers of its bits; float16 as float32."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return (tensor.float() if tensor.dtype == torch.float16 else tensor).numpy()


def _side_by_side(*products: Product) -> Product:
    return Product(*(np.concatenate(part, 1) for part in zip(*products, strict=True)))


def _norm(norms: Sequence[nn.LayerNorm]) -> Norm:
    return Norm(
        *(torch.stack([getattr(norm, name).data for norm in norms]).float().numpy() for name in ("weight", "bias"))
    )


def cache_arrays(cache: KVCache) -> Cache:
    parts = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values)
    return Cache(*(_as_array(part) for part in parts))


def batch_of(spans: Sequence[Span]) -> Batch:
    counts = (len(span.rows) for span in spans)
    return Batch(
        rows=np.array([row for span in spans for row in span.rows]),
        positions=np.array([span.position for span in spans for _ in span.rows]),
        starts=np.array(list(itertools.accumulate(counts, initial=0))),
        slots=np.array([span.slot for span in spans]),
        lengths=np.array([span.encoder_length for span in spans]),
    )
