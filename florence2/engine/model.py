"""Florence-2's language model, BART with the image's features before the prompt: `encode` once, `decode` step by step.

Every row's result is independent of the other rows in a step: the linear layers run on all rows together, attention
runs request by request on views of the cache, so nothing is padded or masked.

D d_model, H heads, E size of a head, S encoder positions, R rows of a step, K rows (beams) of one request,
T decoder positions so far, V rows of the embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.config import ModelConfig, TextConfig
from florence2.engine.kv_cache import CrossKV, SelfKV

POSITION_OFFSET = 2  # BART keeps two rows before position 0


@dataclass(frozen=True)
class Span:
    """One request's share of a decode step."""

    batch: slice  # its K rows of the step's batch
    rows: slice  # its K rows of the cache
    position: int  # of the token being decoded
    cross: CrossKV


class Attention(nn.Module):
    """The four projections of BART's attention; the callers combine them."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(d_model // heads)
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, H, E]"""
        return x.unflatten(-1, (self.heads, -1))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[…, N, E] over […, M, E] -> […, N, E]. Two products: fused attention is slow for single queries on CPU."""
        weights = (queries @ keys.transpose(-1, -2)).mul_(self.scale)
        return weights.softmax(-1) @ values


class FeedForward(nn.Module):
    """The second half of a layer, with the layer norm after the sum, as BART has it."""

    fc1: nn.Linear
    fc2: nn.Linear
    final_layer_norm: nn.LayerNorm

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class EncoderLayer(FeedForward):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.d_model, config.encoder_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn)
        self.fc2 = nn.Linear(config.encoder_ffn, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[S, D] -> [S, D]"""
        attention = self.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        queries, keys, values = (attention.split(project(x)).transpose(0, 1)[None] for project in projections)
        mixed = F.scaled_dot_product_attention(queries, keys, values)[0]
        x = self.self_attn_layer_norm(x + attention.out_proj(mixed.transpose(0, 1).flatten(1)))
        return self.feed_forward(x)


class DecoderLayer(FeedForward):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.d_model, config.decoder_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = Attention(config.d_model, config.decoder_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.decoder_ffn)
        self.fc2 = nn.Linear(config.decoder_ffn, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, spans: list[Span], keys: Tensor, values: Tensor, layer: int) -> Tensor:
        """[R, D] -> [R, D]; keys, values: this layer's cache [rows, H, T, E], written at each span's position."""
        x = self.self_attn_layer_norm(x + self._attend_to_self(x, spans, keys, values))
        x = self.encoder_attn_layer_norm(x + self._attend_to_encoder(x, spans, layer))
        return self.feed_forward(x)

    def _attend_to_self(self, x: Tensor, spans: list[Span], keys: Tensor, values: Tensor) -> Tensor:
        attention = self.self_attn
        query, key, value = (
            attention.split(project(x)) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = torch.empty_like(query)
        for span in spans:
            keys[span.rows, :, span.position] = key[span.batch]
            values[span.rows, :, span.position] = value[span.batch]
            past = (span.rows, slice(None), slice(span.position + 1))
            queries = query[span.batch].unsqueeze(2)  # [K, H, 1, E]
            mixed[span.batch] = attention.attend(queries, keys[past], values[past]).squeeze(2)
        return attention.out_proj(mixed.flatten(1))

    def _attend_to_encoder(self, x: Tensor, spans: list[Span], layer: int) -> Tensor:
        attention = self.encoder_attn
        query = attention.split(attention.q_proj(x))
        mixed = torch.empty_like(query)
        for span in spans:
            queries = query[span.batch].transpose(0, 1)  # [H, K, E]: a request's K/V are read once for all its beams
            answer = attention.attend(queries, span.cross.keys[layer], span.cross.values[layer])
            mixed[span.batch] = answer.transpose(0, 1)
        return attention.out_proj(mixed.flatten(1))


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


class LanguageModel(nn.Module):
    """Weights as in the checkpoint, without the prefix `model.language_model.`; the head is `shared` unless untied."""

    def __init__(self, config: ModelConfig, *, tied: bool = True) -> None:
        super().__init__()
        text = config.text
        self.known_tokens = config.tokens.known
        self.embed_scale = math.sqrt(text.d_model) if text.scale_embedding else 1.0
        self.shared = nn.Embedding(text.vocab_size, text.d_model)
        self.encoder = Side(text, [EncoderLayer(text) for _ in range(text.encoder_layers)])
        self.decoder = Side(text, [DecoderLayer(text) for _ in range(text.decoder_layers)])
        self.lm_head = None if tied else nn.Linear(text.d_model, text.vocab_size, bias=False)

    @torch.inference_mode()
    def encode(self, image_features: Tensor, prompt_ids: Tensor) -> CrossKV:
        """Prefill: [image tokens, D] and [prompt tokens] -> cross-attention keys and values of every decoder layer."""
        x = torch.cat([image_features, self.shared(prompt_ids) * self.embed_scale])
        x = self.encoder.embed(x, torch.arange(len(x), device=x.device))
        for layer in self.encoder.layers:
            x = layer(x)
        attentions = [cast(DecoderLayer, layer).encoder_attn for layer in self.decoder.layers]
        return CrossKV(
            [attention.split(attention.k_proj(x)).transpose(0, 1).contiguous() for attention in attentions],
            [attention.split(attention.v_proj(x)).transpose(0, 1).contiguous() for attention in attentions],
        )

    @torch.inference_mode()
    def decode(self, tokens: Tensor, positions: Tensor, spans: list[Span], cache: SelfKV) -> Tensor:
        """One step: the last token of each row [R] and its position [R] -> float32 logits of the next [R, V]."""
        x = self.decoder.embed(self.shared(tokens) * self.embed_scale, positions)
        for index, layer in enumerate(self.decoder.layers):
            x = layer(x, spans, cache.keys[index], cache.values[index], index)
        head = self.shared if self.lm_head is None else self.lm_head
        return F.linear(x, head.weight).float()
