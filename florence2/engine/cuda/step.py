"""A decoding step of static shapes: padded rows, attention over as many positions as a bucket has, and the layers.

R rows of a step, D d_model, H heads, E size of a head, S positions, V rows of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.engine.backend import Span
from florence2.engine.bart import DecoderLayer, LanguageModel, PackedLayer
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.linear import pack

MINIMUM_BUCKET = 64  # positions


def bucket(length: int, limit: int) -> int:
    """Return the next power of two, at least MINIMUM_BUCKET and at most `limit`."""
    return min(limit, max(MINIMUM_BUCKET, 1 << (length - 1).bit_length()))


class PaddedStep:
    """Rows 0 to `rows` of the cache, live or not, over as many positions as the buckets have.

    Its tensors keep their addresses and shapes whatever it is filled with, so that a graph of it can be replayed.
    """

    def __init__(self, cache: PaddedCache, rows: int, length: int, encoder_length: int) -> None:
        self.cache, self.rows, self.length, self.encoder_length = cache, rows, length, encoder_length
        self.tokens, self.positions, self._slots, self._encoder_lengths = torch.zeros(
            (4, rows), dtype=torch.long, device=cache.device
        )
        self._row_index = torch.arange(rows, device=cache.device)

    def fill(self, tokens: Sequence[int], spans: Sequence[Span]) -> None:
        """Set the tokens to decode, in the order of the spans' rows, and carry out the spans' moves.

        Rows that are not live decode token 0 at position 0, and nothing reads the result.
        """
        values = torch.zeros((4, self.rows), dtype=torch.long)
        values[3] = 1
        first = 0
        for span in spans:
            rows = slice(span.rows.start, span.rows.stop)
            values[0, rows] = torch.tensor(tokens[first : first + len(span.rows)])
            values[1, rows], values[2, rows], values[3, rows] = span.position, span.slot, span.encoder_length
            first += len(span.rows)
            if span.moves:
                self.cache.copy_rows(span.moves, slice(span.kept, span.position))
        buffers = (self.tokens, self.positions, self._slots, self._encoder_lengths)
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)

    def attend_to_self(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write the new keys and values and attend to each row's own: [R, H, E] three times -> [R, H, E]."""
        cached_keys, cached_values = self.cache.self_keys[layer], self.cache.self_values[layer]
        cached_keys[self._row_index, :, self.positions] = keys
        cached_values[self._row_index, :, self.positions] = values
        seen = _below(self.positions + 1, self.length)
        part = (slice(self.rows), slice(None), slice(self.length))
        return _attend(queries, cached_keys[part], cached_values[part], seen)

    def attend_to_encoder(self, layer: int, queries: Tensor) -> Tensor:
        """Attend to the keys and values of each row's slot: [R, H, E] -> [R, H, E]."""
        keys, values = (
            cached[layer, :, :, : self.encoder_length].index_select(0, self._slots)
            for cached in (self.cache.cross_keys, self.cache.cross_values)
        )
        return _attend(queries, keys, values, _below(self._encoder_lengths, self.encoder_length))


def _below(lengths: Tensor, size: int) -> Tensor:
    """Return which positions are below each row's length: [R] -> [R, 1, 1, size]."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None])[:, None, None]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Return attention over the seen positions: [R, H, E] over [R, H, S, E] -> [R, H, E]."""
    return F.scaled_dot_product_attention(queries.unsqueeze(2), keys, values, attn_mask=seen, scale=1.0).squeeze(2)


class PaddedLayer(PackedLayer):
    """A decoder layer over the rows of a padded step."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__(layer)
        attention = layer.encoder_attn
        self.cross_query, self.cross_out = pack(attention.q_proj), pack(attention.out_proj)
        self.cross_norm = layer.encoder_attn_layer_norm

    def __call__(self, x: Tensor, step: PaddedStep, index: int) -> Tensor:
        """Return the layer's output: [R, D] -> [R, D]."""
        attended = step.attend_to_self(index, *self.project(x)).flatten(1)
        x = self.self_norm(x + self.self_out(attended))
        attended = step.attend_to_encoder(index, self.split(self.cross_query(x) * self.scale)).flatten(1)
        x = self.cross_norm(x + self.cross_out(attended))
        return self.feed_forward(x)


class PaddedDecoder:
    """The decoder of a model, from which it takes the decoder layers and the head.

    The linear layers run on all rows together, which reads the weights once.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._layers = [PaddedLayer(layer) for layer in model.decoder.take_layers()]
        self._head = pack(model.take_head())

    def decode(self, step: PaddedStep) -> Tensor:
        """Return the float32 logits [R, V] of the tokens that follow the step's."""
        model = self._model
        x = model.decoder.embed(model.embed(step.tokens, model.decoder.embed_tokens), step.positions)
        for index, layer in enumerate(self._layers):
            x = layer(x, step, index)
        return self._head(x).float()
