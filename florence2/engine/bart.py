"""Florence-2's language model, BART with the image's features before the prompt: its parameters, and its text encoder.

The decoder's parameters are loaded here; a backend packs them for its device and runs them.

D d_model, H heads, E size of a head, F inner width of the feed-forward layers, B requests, S encoder positions, N any
rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.config import ModelConfig, TextConfig
from florence2.engine.linear import (
    FloatEmbedding,
    LayerType,
    Linear,
    Projection,
    Table,
    has_tiles,
    layer_type,
    make_head,
    pack,
    table_type,
)

POSITION_OFFSET = 2  # BART keeps two rows before position 0
HIGHEST_FLOAT16 = torch.finfo(torch.float16).max - 1000
# Weights that are equal to the embedding, `shared.weight`, unless a checkpoint names them.
DECODER_EMBEDDING, HEAD = "decoder.embed_tokens.weight", "lm_head.weight"


class Attention(nn.Module):
    """The four projections of BART's attention."""

    def __init__(self, d_model: int, heads: int, linear: LayerType) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(d_model // heads)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (linear(d_model, d_model) for _ in range(4))


class Layer(nn.Module):
    """The parameters of an encoder layer, which a decoder layer has too."""

    def __init__(self, d_model: int, heads: int, ffn: int, linear: LayerType) -> None:
        super().__init__()
        self.self_attn = Attention(d_model, heads, linear)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.fc1 = linear(d_model, ffn)
        self.fc2 = linear(ffn, d_model)
        self.final_layer_norm = nn.LayerNorm(d_model)


class DecoderLayer(Layer):
    """The parameters of a decoder layer."""

    def __init__(self, d_model: int, heads: int, ffn: int, linear: LayerType) -> None:
        super().__init__(d_model, heads, ffn, linear)
        self.encoder_attn = Attention(d_model, heads, linear)
        self.encoder_attn_layer_norm = nn.LayerNorm(d_model)


class Stack(nn.Module):
    """The encoder or the decoder: a position table, the layer norm of the embedding, and layers."""

    def __init__(self, config: TextConfig, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.embed_positions = FloatEmbedding(config.max_positions + POSITION_OFFSET, config.d_model)
        self.layernorm_embedding = nn.LayerNorm(config.d_model)
        self.embed_tokens: Table | None = None  # the decoder's own, if it is untied
        self.layers = nn.ModuleList(layers)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return what enters the first layer: [N, D] and [N] -> [N, D]."""
        return self.layernorm_embedding(tokens + self.embed_positions(positions + POSITION_OFFSET))

    @property
    def positions(self) -> Tensor:
        """What is added for each position from 0 on, [positions, D]."""
        return self.embed_positions.weight[POSITION_OFFSET:]

    def take_layers(self) -> Iterator[Any]:
        """Yield the layers and forget them, so that the memory of each is free once it is packed."""
        if not len(self.layers):
            raise ValueError("the layers of this model have been taken before")
        while len(self.layers):
            yield self.layers.pop(0)


class LanguageModel(nn.Module):
    """All parameters as in the checkpoint, without the prefix `model.language_model.`.

    `precision`: float32, bfloat16, float16, or int8 or int4, which keep float32 between the layers. The decoder's
    embedding and the head are `shared`, which embeds the prompt, unless `untied` names their weights.
    """

    def __init__(self, config: ModelConfig, *, untied: Container[str] = (), precision: str = "float32") -> None:
        super().__init__()
        text, linear, table = config.text, layer_type(precision), table_type(precision)
        self.precision = precision
        self.embed_scale = math.sqrt(text.d_model) if text.scale_embedding else 1.0
        self.shared: Table = table(text.vocab_size, text.d_model)
        # In prefill 4 bits would save no time, since it multiplies more than it reads, and would cost quality.
        in_prefill = layer_type("int8" if precision == "int4" else precision)
        encoder = (text.d_model, text.encoder_heads, text.encoder_ffn, in_prefill)
        decoder = (text.d_model, text.decoder_heads, text.decoder_ffn, linear)
        self.encoder = Stack(text, [Layer(*encoder) for _ in range(text.encoder_layers)])
        self.decoder = Stack(text, [DecoderLayer(*decoder) for _ in range(text.decoder_layers)])
        if DECODER_EMBEDDING in untied:
            self.decoder.embed_tokens = table(text.vocab_size, text.d_model)
        self.lm_head = make_head(precision, text.d_model, text.vocab_size) if HEAD in untied else None

    @property
    def device(self) -> torch.device:
        return self.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers between the layers."""
        return self.encoder.layernorm_embedding.weight.dtype

    def take_head(self) -> Linear | Table:
        """Return what makes logits, and forget it unless prefill needs it too."""
        head, self.lm_head = self.lm_head or self.shared, None
        return head

    def embed(self, tokens: Tensor, own: Table | None = None) -> Tensor:
        """Return the tokens' embeddings, from a stack's own table if it has one: [N] -> [N, D]."""
        return (own or self.shared)(tokens).to(self.dtype) * self.embed_scale


class PackedLayer:
    """A layer whose products are packed for its device, with the parts that encoder and decoder layers share.

    Layer norms come after the sums, as in BART.
    """

    def __init__(self, layer: Layer) -> None:
        attention = layer.self_attn
        self.heads, self.scale = attention.heads, attention.scale
        self.self_qkv = pack(attention.q_proj, attention.k_proj, attention.v_proj)
        self.self_out, self.self_norm = pack(attention.out_proj), layer.self_attn_layer_norm
        self.fc1, self.fc2, self.final_norm = pack(layer.fc1), pack(layer.fc2), layer.final_layer_norm

    def split(self, x: Tensor) -> Tensor:
        """Return x by heads: [..., H * E] -> [..., H, E]."""
        return x.unflatten(-1, (self.heads, -1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values: [..., D] -> [..., H, E] each."""
        queries, keys, values = self.self_qkv(x).chunk(3, -1)
        return self.split(queries) * self.scale, self.split(keys), self.split(values)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the layer's output from what its attention left: [..., D] -> [..., D]."""
        return self.final_norm(x + self.fc2(F.gelu(self.fc1(x))))


class EncoderLayer(PackedLayer):
    """An encoder layer. `attention_dtype`: what attention computes with."""

    def __init__(self, layer: Layer, attention_dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.attention_dtype = attention_dtype

    def __call__(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """Return the layer's output: [B, S, D] -> [B, S, D]. seen: bool [B, 1, 1, S], or None for all positions."""
        queries, keys, values = (part.transpose(1, 2).to(self.attention_dtype) for part in self.project(x))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=1.0).to(x.dtype)
        x = self.self_norm(x + self.self_out(attended.transpose(1, 2).flatten(2)))
        x = self.feed_forward(x)
        if x.dtype == torch.float16:  # as transformers does
            x = x.clamp(-HIGHEST_FLOAT16, HIGHEST_FLOAT16)
        return x


class Prefill(NamedTuple):
    """A request's input for the encoder."""

    image_features: NDArray[np.float32]  # [image tokens, D], from the vision encoder
    prompt_ids: Sequence[int]  # `<s>` and `</s>` included
    slot: int  # for the keys and values of cross-attention


Write = Callable[[int, int, Tensor, Tensor], None]  # layer, slot, keys and values, [H, S, E] each


class TextEncoder:
    """What prefill computes: the encoder, and the keys and values of the decoder's cross-attention.

    Takes the model's encoder layers. The decoder's layers must still be there, and stay.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._cross: list[tuple[int, Projection]] = []  # heads, and keys and values side by side
        for decoder_layer in model.decoder.layers:
            attention = cast(DecoderLayer, decoder_layer).encoder_attn
            self._cross.append((attention.heads, pack(attention.k_proj, attention.v_proj)))
            del attention.k_proj, attention.v_proj
        # Next to int8 products, attention in float32 would take a third of prefill.
        in_halves = model.precision in ("int8", "int4") and model.device.type == "cpu" and has_tiles()
        attention_dtype = torch.bfloat16 if in_halves else model.dtype
        self._layers = [EncoderLayer(layer, attention_dtype) for layer in model.encoder.take_layers()]

    def prefill(self, requests: Sequence[Prefill], write: Write) -> Generator[None, None, list[bool]]:
        """Encode images with their prompts as one batch, padded to the longest, and write the slots.

        Stop after each layer; all writes come last. Return for each request whether its numbers are finite: features
        may be so large that they overflow, and then the slot is of no use.
        """
        model = self._model
        features = torch.from_numpy(np.stack([request.image_features for request in requests]))
        prompts = nn.utils.rnn.pad_sequence([torch.tensor(request.prompt_ids) for request in requests], True)
        embedded = features.to(model.device, model.dtype), model.embed(prompts.to(model.device))
        x = torch.cat(embedded, 1)  # [B, S, D]
        lengths = [features.shape[1] + len(request.prompt_ids) for request in requests]
        positions = torch.arange(x.shape[1], device=x.device)
        own = positions < torch.tensor(lengths, device=x.device)[:, None]  # [B, S]
        seen = own[:, None, None] if min(lengths) < max(lengths) else None
        x = model.encoder.embed(x, positions)
        for layer in self._layers:
            x = layer(x, seen)
            yield
        finite = torch.ones_like(own[:, 0])
        for index, (heads, project) in enumerate(self._cross):
            found = project(x)
            extremes = found.amax(-1), found.amin(-1)  # NaN if any number is
            finite &= (extremes[0].isfinite() & extremes[1].isfinite() | ~own).all(-1)
            # What is not finite must not be written: the slot's next owner reads and masks it, and -inf + NaN is NaN.
            by_head = found.nan_to_num_(0, 0, 0).unflatten(-1, (2, heads, -1)).permute(0, 2, 3, 1, 4)  # [B, 2, H, S, E]
            for request, length, both in zip(requests, lengths, by_head, strict=True):
                write(index, request.slot, *both[:, :, :length])
        return finite.tolist()
