"""Florence-2's language model, BART with the image's features before the prompt: `prefill` once, `decode` step by step.

On a CPU `compiled` decodes. Elsewhere torch does: the linear layers run on all rows of a step together, which reads the
weights once, and attention over the cache is the `attention.PaddedStep`'s. Nothing depends on the other rows of a step.

D d_model, H heads, E size of a head, S encoder positions, R rows of a step, V rows of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.config import ModelConfig, TextConfig
from florence2.engine.attention import PaddedStep
from florence2.engine.compiled import CompiledDecoder
from florence2.engine.kv_cache import KVCache
from florence2.engine.linear import LayerType, Projection, layer_type, pack
from florence2.errors import InvalidRequest

POSITION_OFFSET = 2  # BART keeps two rows before position 0


class Attention(nn.Module):
    """The four projections of BART's attention."""

    def __init__(self, d_model: int, heads: int, linear: LayerType) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(d_model // heads)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (linear(d_model, d_model) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, H, E]"""
        return x.unflatten(-1, (self.heads, -1))


class Layer(nn.Module):
    """What an encoder and a decoder layer share. Layer norms come after the sums, as BART has it."""

    def __init__(self, d_model: int, heads: int, ffn: int, linear: LayerType) -> None:
        super().__init__()
        self.self_attn = Attention(d_model, heads, linear)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.fc1 = linear(d_model, ffn)
        self.fc2 = linear(ffn, d_model)
        self.final_layer_norm = nn.LayerNorm(d_model)

    def pack(self) -> None:
        """Exchanges the layers as they were loaded for those that compute fastest."""
        attention = self.self_attn
        self.project_in = pack(attention.q_proj, attention.k_proj, attention.v_proj)
        self.project_out = pack(attention.out_proj)
        self.widen, self.narrow = pack(self.fc1), pack(self.fc2)
        self.unload()

    def unload(self) -> None:
        """Lets go of the layers as they were loaded."""
        attention = self.self_attn
        del attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, self.fc1, self.fc2

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, D] -> scaled queries, keys and values, [N, H, E] each"""
        queries, keys, values = self.project_in(x).chunk(3, -1)
        attention = self.self_attn
        return attention.split(queries) * attention.scale, attention.split(keys), attention.split(values)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.final_layer_norm(x + self.narrow(F.gelu(self.widen(x))))


class EncoderLayer(Layer):
    def forward(self, x: Tensor) -> Tensor:
        """[S, D] -> [S, D]"""
        queries, keys, values = (part.transpose(0, 1)[None] for part in self.project(x))
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[0]
        x = self.self_attn_layer_norm(x + self.project_out(mixed.transpose(0, 1).flatten(1)))
        return self.feed_forward(x)


class DecoderLayer(Layer):
    def __init__(self, d_model: int, heads: int, ffn: int, linear: LayerType) -> None:
        super().__init__(d_model, heads, ffn, linear)
        self.encoder_attn = Attention(d_model, heads, linear)
        self.encoder_attn_layer_norm = nn.LayerNorm(d_model)

    def pack(self) -> None:
        attention = self.encoder_attn
        self.ask_encoder, self.answer_encoder = pack(attention.q_proj), pack(attention.out_proj)
        super().pack()

    def unload(self) -> None:
        super().unload()
        del self.encoder_attn.q_proj, self.encoder_attn.out_proj

    def pack_for_prefill(self) -> None:
        attention = self.encoder_attn
        self.project_encoder = pack(attention.k_proj, attention.v_proj)
        del attention.k_proj, attention.v_proj

    def forward(self, x: Tensor, step: PaddedStep, layer: int) -> Tensor:
        """[R, D] -> [R, D]"""
        mixed = step.attend_to_self(layer, *self.project(x)).flatten(1)
        x = self.self_attn_layer_norm(x + self.project_out(mixed))
        attention = self.encoder_attn
        mixed = step.attend_to_encoder(layer, attention.split(self.ask_encoder(x) * attention.scale)).flatten(1)
        x = self.encoder_attn_layer_norm(x + self.answer_encoder(mixed))
        return self.feed_forward(x)

    def encoder_keys_and_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """[S, D] -> [H, S, E] twice"""
        keys, values = self.project_encoder(encoded).chunk(2, -1)
        return self.encoder_attn.split(keys).transpose(0, 1), self.encoder_attn.split(values).transpose(0, 1)


class Side(nn.Module):
    """What encoder and decoder share: position table, layer norm of the embedding, layers."""

    def __init__(self, config: TextConfig, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed_positions = nn.Embedding(config.max_positions + POSITION_OFFSET, config.d_model)
        self.layernorm_embedding = nn.LayerNorm(config.d_model)
        self.layers = nn.ModuleList(layers)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """[N, D] and [N] -> [N, D]"""
        return self.layernorm_embedding(tokens + self.embed_positions(positions + POSITION_OFFSET))

    @property
    def positions(self) -> Tensor:
        """What is added for each position from 0 on, [positions, D]."""
        return self.embed_positions.weight[POSITION_OFFSET:]


class LanguageModel(nn.Module):
    """Weights as in the checkpoint, without the prefix `model.language_model.`; the head is `shared` unless untied.

    `pack` makes it ready, once the weights are in. `precision`: float32, bfloat16, float16, or int8, which keeps
    float32 between the layers.
    """

    head: Projection  # only where torch decodes
    compiled: CompiledDecoder | None

    def __init__(self, config: ModelConfig, *, tied: bool = True, precision: str = "float32") -> None:
        super().__init__()
        text, linear = config.text, layer_type(precision)
        self.precision = precision
        self.embed_scale = math.sqrt(text.d_model) if text.scale_embedding else 1.0
        self.shared = nn.Embedding(text.vocab_size, text.d_model)
        encoder = (text.d_model, text.encoder_heads, text.encoder_ffn, linear)
        decoder = (text.d_model, text.decoder_heads, text.decoder_ffn, linear)
        self.encoder = Side(text, [EncoderLayer(*encoder) for _ in range(text.encoder_layers)])
        self.decoder = Side(text, [DecoderLayer(*decoder) for _ in range(text.decoder_layers)])
        self.lm_head = None if tied else linear(text.d_model, text.vocab_size, bias=False)

    def pack(self, *, compiled: bool | None = None) -> LanguageModel:
        """Called once, after the weights were loaded. `compiled`: whether `compiled` decodes, by default on a CPU."""
        self.eval().requires_grad_(False)
        for layer in self.encoder.layers:
            cast(EncoderLayer, layer).pack()
        layers = [cast(DecoderLayer, layer) for layer in self.decoder.layers]
        for decoder_layer in layers:
            decoder_layer.pack_for_prefill()
        head = self.lm_head or self.shared
        self.compiled = None
        if self.device.type == "cpu" if compiled is None else compiled:
            self.compiled = CompiledDecoder(self.shared, self.embed_scale, self.decoder, head, torch.get_num_threads())
            for decoder_layer in layers:
                decoder_layer.unload()
        else:
            self.head = pack(head)
            for decoder_layer in layers:
                decoder_layer.pack()
        self.lm_head = None
        return self

    @property
    def device(self) -> torch.device:
        return self.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes from layer to layer."""
        return self.encoder.layernorm_embedding.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values."""
        if self.compiled is None:
            return self.dtype
        return torch.float32 if self.precision == "float32" else torch.bfloat16

    def embed(self, tokens: Tensor) -> Tensor:
        """[N] -> [N, D]"""
        return self.shared(tokens).to(self.dtype) * self.embed_scale

    def prefill(self, image_features: Tensor, prompt_ids: Tensor, cache: KVCache, slot: int) -> Iterator[None]:
        """[image tokens, D] and [prompt tokens] -> cross-attention keys and values of every decoder layer, in the slot.

        A generator that stops after each layer, so that others may decode in between. Raises InvalidRequest on features
        so large that the numbers overflow.
        """
        x = torch.cat([image_features.to(self.dtype), self.embed(prompt_ids)])  # [S, D]
        x = self.encoder.embed(x, torch.arange(len(x), device=x.device))
        for layer in self.encoder.layers:
            x = layer(x)
            yield
        if not bool(x.isfinite().all()):  # whoever has the slot next would read them, masked, and -inf + NaN is NaN
            raise InvalidRequest("IMAGE_FEATURES lead to numbers out of the model's range")
        for index, layer in enumerate(self.decoder.layers):
            cache.write_encoder(index, slot, *cast(DecoderLayer, layer).encoder_keys_and_values(x))

    def decode(self, tokens: Tensor, step: PaddedStep) -> Tensor:
        """The last token of each row [R] -> float32 logits of the next [R, V]."""
        x = self.decoder.embed(self.embed(tokens), step.positions)
        for index, layer in enumerate(self.decoder.layers):
            x = layer(x, step, index)
        return self.head(x).float()
