"""A decoding step of static shapes, from tokens to candidates, so that a graph of it can be captured and replayed.

One copy brings all inputs to the device, and one brings the candidates back. The beams of a request share their slot's
keys and values: cross-attention groups queries by slot and gathers nothing.

R rows, C slots, K beams of a request at most, T decoder and S encoder positions, M tokens of a rule at most: these are
the step's shape. L layers, D d_model, H heads, E size of a head, V rows of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.config import LOCATION_BINS, TokenConfig
from florence2.engine.backend import NO_DRAW, NO_TOKEN, Candidates, Floats, Group, Integers, Layout, StepInput
from florence2.engine.bart import DecoderLayer, LanguageModel, PackedLayer
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.cuda.inputs import Inputs
from florence2.engine.cuda.sampling import draw_tokens
from florence2.engine.linear import pack
from florence2.locations import NEAR

GROUP = 128  # log-probs of which only the largest is looked at first
SMALL = 4096  # so few log-probs are searched at once


class Shape(NamedTuple):
    """What a step is padded to. Each number is a bucket that holds what the live requests need."""

    rows: int
    slots: int
    beams: int
    length: int
    encoder_length: int
    rules: int
    samples: bool = False  # whether tokens are drawn, which takes a sort


class PaddedStep:
    """Rows 0 to R and slots 0 to C of the cache, live or not.

    Its tensors keep their addresses and shapes whatever it is filled with.
    """

    def __init__(self, cache: PaddedCache, vocabulary: int, tokens: TokenConfig, shape: Shape) -> None:
        self.cache, self.shape = cache, shape
        self._vocabulary, self._tokens = vocabulary, tokens
        rows, slots, beams, rules = shape.rows, shape.slots, shape.beams, shape.rules
        by_row = ("tokens", "positions", "parents", "forced", "greedy", "places", "scores", "penalties",
                  "draws", "temperatures", "top_ks", "top_ps")  # fmt: skip
        sizes = dict.fromkeys(by_row, rows) | {
            "banned": rows * rules,
            "penalized": rows * rules,
            "encoder_lengths": slots,
            "groups": slots * beams,
        }
        floats = ("scores", "penalties", "draws", "temperatures", "top_ps")
        self.inputs = Inputs(sizes, floats, cache.device)
        self._row_index = torch.arange(rows, device=cache.device)
        self._offsets = torch.arange(-NEAR, NEAR + 1, device=cache.device)
        self._best = torch.zeros(4, rows, 2 * beams, device=cache.device)
        best = torch.zeros(4, rows, 2 * beams)
        self._best_on_host = best.pin_memory() if cache.device.type == "cuda" else best
        self._masks: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._layout: Layout | None = None
        self._clear()

    def fill(self, given: StepInput) -> None:
        """Write the requests' tokens, rules, places and moves to the host's block."""
        host, rows = self.inputs.host, given.layout.rows
        if self._layout is not given.layout:
            self._clear()
            self._place(given.layout)
        host["tokens"][rows] = given.tokens
        host["positions"][rows] = given.positions
        host["scores"][rows] = given.scores
        host["parents"][rows] = given.parents
        host["forced"][rows] = given.forced
        host["draws"][rows] = given.draws
        for name, (tokens, starts) in ("banned", given.banned), ("penalized", given.penalized):
            host[name][:] = self._vocabulary  # no token
            if len(tokens):
                first = rows * self.shape.rules - starts[:-1]
                host[name][first.repeat(starts[1:] - starts[:-1]) + np.arange(len(tokens))] = tokens

    def _clear(self) -> None:
        """Let all rows decode token 0 at position 0, under no rules. Nothing reads the result where none is live."""
        host = self.inputs.host
        for name in ("tokens", "positions", "greedy", "places", "scores", "groups"):
            host[name][:] = 0
        host["parents"][:] = np.arange(self.shape.rows)
        host["forced"][:] = NO_TOKEN
        host["penalties"][:] = host["temperatures"][:] = host["encoder_lengths"][:] = 1
        host["draws"][:] = NO_DRAW

    def _place(self, layout: Layout) -> None:
        """Write what stays the same until a request comes or goes."""
        host, rows = self.inputs.host, layout.rows
        for name in ("penalties", "temperatures", "top_ks", "top_ps"):
            host[name][rows] = getattr(layout, name)
        host["encoder_lengths"][layout.slots] = layout.encoder_lengths
        for group in layout.groups:
            places = layout.slots[group.requests][:, None] * self.shape.beams + np.arange(group.beams)
            host["places"][group.rows] = places
            host["groups"][places] = group.rows
            host["greedy"][group.rows] = group.beams == 1
        self._layout = layout

    def begin(self) -> None:
        """Compute what all layers share: which positions each row and each slot attends to."""
        shape, inputs = self.shape, self.inputs.device
        self._masks = (
            _below(inputs["positions"] + 1, shape.length),
            _below(inputs["encoder_lengths"], shape.encoder_length),
        )

    def attend_to_self(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Move beams, write the new keys and values, attend to each row's own: [R, H, E] three times -> [R, H, E]."""
        positions = self.inputs.device["positions"].long()

        def updated(cached: Tensor, new: Tensor) -> Tensor:
            part = cached[layer, : self.shape.rows, :, : self.shape.length]
            if self.shape.beams > 1:
                part.copy_(part.index_select(0, self.inputs.device["parents"]))
            part[self._row_index, :, positions] = new
            return part

        keys, values = updated(self.cache.self_keys, keys), updated(self.cache.self_values, values)
        return _attend(queries.unsqueeze(2), keys, values, self._masks[0]).squeeze(2)

    def attend_to_encoder(self, layer: int, queries: Tensor) -> Tensor:
        """Attend to the keys and values of each row's slot: [R, H, E] -> [R, H, E]."""
        slots, beams, encoder_length = self.shape.slots, self.shape.beams, self.shape.encoder_length
        grouped = queries.index_select(0, self.inputs.device["groups"]).unflatten(0, (slots, beams))
        keys, values = (
            cached[layer, :slots, :, :encoder_length] for cached in (self.cache.cross_keys, self.cache.cross_values)
        )
        attended = _attend(grouped.transpose(1, 2), keys, values, self._masks[1])  # [C, H, K, E]
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self.inputs.device["places"])

    def choose(self, logits: Tensor) -> None:
        """Find the best 2K continuations of every row, with transformers' arithmetic and order of the rules.

        logits: float32 [R, V]. A request's best are among those of its rows. Greedy rows are ranked by what the rules
        leave of their logits, rows of a beam search by their sums of log-probs.
        """
        inputs, rows, size = self.inputs.device, self.shape.rows, self._vocabulary
        greedy = inputs["greedy"][:, None] > 0
        raw = logits.log_softmax(-1)
        scores = F.pad(torch.where(greedy, logits, raw), (0, 1))  # the last column is no token
        penalized = inputs["penalized"].long().view(rows, -1)
        chosen, penalties = scores.gather(1, penalized), inputs["penalties"][:, None]
        scores = scores.scatter(1, penalized, torch.where(chosen < 0, chosen * penalties, chosen / penalties))
        scores = scores.scatter(1, inputs["banned"].long().view(rows, -1), -math.inf)[:, :size]
        forced = inputs["forced"][:, None]
        only = torch.where(torch.arange(size, device=logits.device) == forced, 0.0, -math.inf)
        scores = torch.where(forced == NO_TOKEN, scores, only)
        log_probs = torch.where(greedy, scores.log_softmax(-1), scores)
        ranked = torch.where(greedy, scores, scores + inputs["scores"][:, None])
        best, tokens = top_of_rows(ranked[:, : self._tokens.known], 2 * self.shape.beams)
        chosen = log_probs.gather(1, tokens)
        if self.shape.samples:
            how = (inputs[name][:, None] for name in ("draws", "temperatures", "top_ks", "top_ps"))
            token, log_prob = draw_tokens(scores[:, : self._tokens.known], *how)
            drawn = inputs["draws"][:, None] >= 0
            tokens, chosen = torch.where(drawn, token, tokens), torch.where(drawn, log_prob, chosen)
        torch.stack([best, tokens.float(), chosen, self.log_masses(raw, tokens)], out=self._best)

    def log_masses(self, log_probs: Tensor, tokens: Tensor) -> Tensor:
        """Return the log of the probability of each token or, of a location, of those near it: [R, 2K] -> [R, 2K]."""
        first = self._tokens.first_location
        last = min(first + LOCATION_BINS, self._vocabulary) - 1
        near = tokens[:, :, None] + self._offsets  # [R, 2K, offsets]
        are_locations = (near >= first) & (near <= last) & (tokens >= first)[:, :, None] & (tokens <= last)[:, :, None]
        counted = are_locations | (self._offsets == 0)
        probed = log_probs.gather(1, near.clamp(0, self._vocabulary - 1).flatten(1)).view_as(near)
        return probed.where(counted, -math.inf).logsumexp(-1).clamp(max=0)

    def candidates(self, groups: Sequence[Group]) -> list[Candidates]:
        """Bring the best continuations to the host, and return those of each group."""
        self._best_on_host.copy_(self._best)
        found = self._best_on_host.numpy()
        return [_of_group(group.rows, found) for group in groups]


def _of_group(rows: Integers, found: Floats) -> Candidates:
    """Return the best continuations of requests, rows [n, K], of all rows' [4, R, 2K or more]."""
    requests, beams = rows.shape
    if beams == 1:
        scores, tokens, log_probs, log_masses = found[:, rows, 0]
        return Candidates(scores, np.zeros_like(rows), tokens.astype(np.int64), log_probs, log_masses)
    sums = found[0][rows].reshape(requests, -1)
    order = np.argsort(-sums, axis=1, kind="stable")[:, : 2 * beams]  # equal sums in the order of rows and tokens
    broken = np.isnan(sums)  # argsort puts NaN last
    if broken.any():
        order[broken.any(1), 0] = broken.argmax(1)[broken.any(1)]
    parents, places = np.divmod(order, found.shape[2])
    scores, tokens, log_probs, log_masses = found[:, rows[np.arange(requests)[:, None], parents], places]
    return Candidates(scores, parents, tokens.astype(np.int64), log_probs, log_masses)


def top_of_rows(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of each row and their places: [R, V] -> [R, count] twice.

    They lie in the `count` groups whose highest scores are highest, so that only those are searched.
    """
    rows, size = scores.shape
    groups = -(-size // GROUP)
    if size < SMALL or groups <= count:
        best = scores.topk(count)
        return best.values, best.indices
    padded = F.pad(scores, (0, groups * GROUP - size), value=-math.inf).view(rows, groups, GROUP)
    found = padded.amax(-1).topk(count).indices.sort(-1).values  # in order, so that the first of equal scores wins
    few = padded.gather(1, found[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    best = few.topk(count)
    return best.values, found.gather(1, best.indices // GROUP) * GROUP + best.indices % GROUP


def _below(lengths: Tensor, size: int) -> Tensor:
    """Return which positions are below each length: [N] -> [N, 1, 1, size]."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None])[:, None, None]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Return attention over the seen positions: [N, H, K, E] over [N, H, S, E] -> [N, H, K, E]."""
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=1.0)


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
        self.vocabulary = model.shared.num_embeddings

    def decode(self, step: PaddedStep) -> Tensor:
        """Return the float32 logits [R, V] of the tokens that follow the step's."""
        model, inputs = self._model, step.inputs.device
        step.begin()
        x = model.decoder.embed(model.embed(inputs["tokens"], model.decoder.embed_tokens), inputs["positions"])
        for index, layer in enumerate(self._layers):
            x = layer(x, step, index)
        return self._head(x).float()
