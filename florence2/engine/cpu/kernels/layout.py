"""How weights, cache, batch and intermediate results lie in memory; the letters are those of the package."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

LANES = 16  # columns of a vector
WIDTH = 4  # vectors of a tile
POSITIONS = WIDTH * LANES  # that keys lie side by side for
QUADS, PAIRS = 4, 2  # int8 and bfloat16 weights in one element of an array, for as many inputs
# int4 weights lie in blocks of two groups of inputs and LANES outputs, whose size is a multiple of a cache line. First
# the codes: a vector of bytes for each two quads of inputs, the second of them in the upper bits. Then, for each group,
# LANES lowest levels and LANES spacings.
GROUP = 32  # inputs, as in `engine.int4`, which needs torch: the process that compiles does without
BLOCK = 2 * GROUP
CODES = BLOCK * LANES // 2
BLOCK_BYTES = CODES + 2 * 2 * LANES
LEVELS, ZERO_POINT = np.float32(127), 128  # inputs of int8 products are unsigned bytes around 128


class Product(NamedTuple):
    """Linear layers of one kind, stacked over layers: y = x W^T * scale + bias."""

    weights: NDArray[Any]  # [L, columns / LANES * steps * LANES], in the order and of the types of `tiles.tile`
    bias: Floats  # [L, columns]
    scale: Floats  # [L, columns]
    offset: Floats  # [L, columns]; what ZERO_POINT adds to the sums of int8 products


class Norm(NamedTuple):
    """Layer norms of one kind, stacked over layers."""

    weight: Floats  # [L, D]
    bias: Floats  # [L, D]


class Embedding(NamedTuple):
    """What turns tokens and positions into the first layer's input."""

    tokens: NDArray[Any] | Product  # [V, D], floats or upper halves; or a head of int8 weights
    positions: NDArray[Any]  # [positions, D]
    scale: np.float32  # of tokens
    norm: Norm  # of the sums; L is 1
    size: int  # V


class Weights(NamedTuple):
    """The decoder's weights; the products that make queries scale them too."""

    embedding: Embedding
    self_qkv: Product  # D -> 3 * H * E: queries, keys, values
    self_out: Product  # H * E -> D
    self_norm: Norm
    cross_query: Product  # D -> H * E
    cross_out: Product  # H * E -> D
    cross_norm: Norm
    fc1: Product  # D -> F
    fc2: Product  # F -> D
    final_norm: Norm
    head: Product  # D -> V


class Vocabulary(NamedTuple):
    """The ids of tokens."""

    known: int  # ids from here on are padding rows of the embedding, which are never chosen
    first_location: int
    last_location: int
    near: int  # locations at most so far from each other count as the same place


class CacheArrays(NamedTuple):
    """Keys and values, floats or upper halves; self-attention's by row, cross-attention's by slot."""

    self_keys: NDArray[Any]  # [L, rows, H, T / POSITIONS, E, POSITIONS]
    self_values: NDArray[Any]  # [L, rows, H, T, E]
    cross_keys: NDArray[Any]  # [L, slots, H, S / POSITIONS, E, POSITIONS]
    cross_values: NDArray[Any]  # [L, slots, H, S, E]


class Batch(NamedTuple):
    """What is live, and what its next tokens may be."""

    tokens: Integers  # [R], to decode
    rows: Integers  # [R], of the cache
    positions: Integers  # [R], of the tokens being decoded
    starts: Integers  # [N + 1]: request n has rows starts[n] up to starts[n + 1] of the step
    slots: Integers  # [N]
    lengths: Integers  # [N], encoder positions
    moves: Integers  # [M, 2], (from, to): rows of the cache that first take over what others hold
    move_starts: Integers  # [N + 1], of each request's moves
    kept: Integers  # [N], leading positions that the rows of its moves have in common
    beam_scores: Floats  # [R], sums of log-probs
    forced: Integers  # [R], the only token that may come next, or -1
    banned: Integers  # tokens that must not come next, row by row
    banned_starts: Integers  # [R + 1], of each row's banned tokens
    penalized: Integers  # tokens whose scores are penalized, row by row
    penalized_starts: Integers  # [R + 1], of each row's penalized tokens
    penalties: Floats  # [R]
    draws: NDArray[np.float64]  # [R], the quantile of the token to draw; -1 where none is drawn
    temperatures: Floats  # [R]
    top_ks: Integers  # [R], 0 for all
    top_ps: Floats  # [R]


class Scratch(NamedTuple):
    """Intermediate results. Arrays with a first axis of threads are each thread's own."""

    x: Floats  # [threads, R, D]
    inputs: NDArray[np.uint16]  # [threads, R, widest], as upper halves, or twice as many bytes
    row_scales: Floats  # [threads, R]
    scores: Floats  # [threads, R, longest], of attention
    moving: NDArray[Any]  # [threads, R, T, E], of the cache's type
    projected: Floats  # [R, 3 * H * E]
    attended: Floats  # [R, H * E]
    widened: Floats  # [R, F]
    change: Floats  # [R, D], what a layer's part adds to x
    logits: Floats  # [R, V or more]
    largest: Floats  # [R]; log_softmax is (logits - largest) - log_sums
    log_sums: Floats  # [R]
    kept_raw: Integers  # [R], 1 if rules change the row
    raw_logits: Floats  # [R, V], what they change, before the rules
    raw_largest: Floats  # [R]
    raw_log_sums: Floats  # [R]
    weights: Floats  # [threads, V], relative probabilities of the tokens that may be drawn
    best_sums: Floats  # [2 * R], scores of the best continuations; those of request n begin at 2 * starts[n]
    best_places: Integers  # [2 * R], beam * V + token
    best_log_probs: Floats  # [2 * R], of the tokens
    best_log_masses: Floats  # [2 * R], of the tokens and, if they are locations, those near them
