"""One decode step on a CPU, from tokens to the best next ones, as one compiled function that several threads run
together. Called by `compiled`.

Each thread does its share of a stage (columns of a product, heads of an attention) and waits for the others where it
needs theirs; layer norms, which take a microsecond, each thread computes for itself. Numbers are float32 between the
products. No thread holds the interpreter's lock. Each row's numbers are computed in the same order whatever the number
of rows and threads, so nobody's depend on neighbours.

All in one file, since numba compiles anew what it kept on disk only if the file of `decode` has changed.

R rows of the step, N requests, K beams of a request, L layers, D d_model, H heads, E size of a head, F inner width of
the feed-forward layers, T and S positions of the caches. E and F are multiples of LANES, T and S of POSITIONS; who is
not is padded.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

LANES = 16  # columns of a vector
WIDTH = 4  # vectors of a tile
POSITIONS = WIDTH * LANES  # that keys lie side by side for
QUADS, PAIRS = 4, 2  # int8 and bfloat16 weights of one element of an array, for as many inputs
LEVELS, ZERO_POINT = np.float32(127), 128  # inputs of int8 products are unsigned bytes around 128
TINY = np.float32(1e-30)  # the scale of a row of zeros
NORM_EPSILON = np.float32(1e-5)  # torch's and BART's
STRETCH = 128  # logits that are looked at together
SPINS = 2000  # looks at the others' progress before the core is offered to somebody else

BYTE, INT32, INT64, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
HALF = ir.IntType(16)
FLOATS, INTS, HALVES = (ir.VectorType(each, LANES) for each in (FLOAT, INT32, HALF))
BYTES = ir.VectorType(BYTE, LANES * QUADS)


class _BFloat(ir.Type):
    """Which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOATS = ir.VectorType(_BFloat(), LANES * PAIRS)
# Those that numba compiles for, which may be fewer than this CPU has.
FEATURES = (get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES).split(",")
HAS_VNNI, HAS_BFLOATS = "+avx512vnni" in FEATURES, "+avx512bf16" in FEATURES

compiled = njit(nogil=True, error_model="numpy")
# Sums in any order, and products and sums in one instruction: what vectors need. Infinity and NaN stay what they are.
compiled_loop = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


class Product(NamedTuple):
    """Linear layers of one kind, stacked over layers: y = x W^T * scale + bias."""

    weights: NDArray[Any]  # [L, columns / LANES * steps * LANES], in the order and of the types of `tile`
    bias: Floats  # [L, columns]
    scale: Floats  # [L, columns]
    offset: Floats  # [L, columns]; what ZERO_POINT adds to the sums of int8 products


class Norm(NamedTuple):
    weight: Floats  # [L, D]
    bias: Floats  # [L, D]


class Embedding(NamedTuple):
    tokens: NDArray[Any]  # [V, D], floats or upper halves
    positions: NDArray[Any]  # [positions, D]
    scale: np.float32  # of tokens
    norm: Norm  # of the sums; L is 1


class Weights(NamedTuple):
    """Of a decoder; queries come out scaled."""

    embedding: Embedding
    project_in: Product  # D -> 3 * H * E: queries, keys, values
    project_out: Product  # H * E -> D
    self_norm: Norm
    ask_encoder: Product  # D -> H * E
    answer_encoder: Product  # H * E -> D
    encoder_norm: Norm
    widen: Product  # D -> F
    narrow: Product  # F -> D
    final_norm: Norm
    head: Product  # D -> V


class Cache(NamedTuple):
    """Floats or upper halves."""

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
    moves: Integers  # [M, 2], rows of the cache that first go on from others: from where, to where
    move_starts: Integers  # [N + 1], of each request among them
    kept: Integers  # [N], positions that its moving rows have in common
    scores: Floats  # [R], sums of log-probs
    forced: Integers  # [R], the only token that may come next, or -1
    banned: Integers  # tokens that must not come next, row by row
    banned_starts: Integers  # [R + 1], of each row among them


class Scratch(NamedTuple):
    """Between the stages. What has a first axis of threads is each thread's own."""

    x: Floats  # [threads, R, D]
    inputs: NDArray[np.uint16]  # [threads, R, widest], as upper halves, or twice as many bytes
    scales: Floats  # [threads, R]
    scores: Floats  # [threads, R, longest]
    moving: NDArray[Any]  # [threads, R, T, E], of what the cache holds
    projected: Floats  # [R, 3 * H * E]
    mixed: Floats  # [R, H * E]
    wide: Floats  # [R, F]
    narrow: Floats  # [R, D]
    logits: Floats  # [R, V or more]
    largest: Floats  # [R]; log_softmax is (logits - largest) - log_sums
    log_sums: Floats  # [R]
    sums: Floats  # [2 * R], scores of the best continuations; those of request n begin at 2 * starts[n]
    places: Integers  # [2 * R], beam * V + token
    log_probs: Floats  # [2 * R], of the tokens


def kept_on_disk(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled at the first call, which takes about 20 s, and kept beside this file, in NUMBA_CACHE_DIR or in the
    user's cache folder; where nothing can be written, for this process alone.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        return compiled(function)


@kept_on_disk
def decode(thread, threads, arrived, weights, known, cache, batch, scratch):
    """Fills scratch.sums, places and log_probs with the best continuations by tokens less than `known`: 2K of a request
    of K beams, one of a request of one. `arrived` [1] must be zero at the start.
    """
    rows = len(batch.rows)
    x = scratch.x[thread, :rows]
    embed(batch, weights.embedding, x)
    layer_norm(x, weights.embedding.norm, 0)
    done = 0
    for layer in range(weights.self_norm.weight.shape[0]):
        multiply_heads(thread, threads, weights.project_in, layer, x, cache, scratch)
        attend_to_self(thread, threads, layer, cache, batch, scratch)
        done = wait(arrived, done, threads)
        multiply(thread, threads, weights.project_out, layer, scratch.mixed[:rows], scratch, scratch.narrow)
        done = wait(arrived, done, threads)
        add(x, scratch.narrow)
        layer_norm(x, weights.self_norm, layer)

        multiply_heads(thread, threads, weights.ask_encoder, layer, x, cache, scratch)
        attend_to_encoder(thread, threads, layer, cache, batch, scratch)
        done = wait(arrived, done, threads)
        multiply(thread, threads, weights.answer_encoder, layer, scratch.mixed[:rows], scratch, scratch.narrow)
        done = wait(arrived, done, threads)
        add(x, scratch.narrow)
        layer_norm(x, weights.encoder_norm, layer)

        multiply(thread, threads, weights.widen, layer, x, scratch, scratch.wide)
        gelu(thread, threads, scratch.wide[:rows])
        done = wait(arrived, done, threads)
        multiply(thread, threads, weights.narrow, layer, scratch.wide[:rows], scratch, scratch.narrow)
        done = wait(arrived, done, threads)
        add(x, scratch.narrow)
        layer_norm(x, weights.final_norm, layer)
    multiply(thread, threads, weights.head, 0, x, scratch, scratch.logits)
    done = wait(arrived, done, threads)
    choose(thread, threads, len(weights.embedding.tokens), known, batch, scratch)
    wait(arrived, done, threads)


@compiled
def share(count, thread, threads):
    """From where up to where this thread works."""
    return count * thread // threads, count * (thread + 1) // threads


@compiled
def share_columns(columns, thread, threads):
    """In vectors, by whole tiles."""
    vectors = columns // LANES
    first, last = share((vectors + WIDTH - 1) // WIDTH, thread, threads)
    return first * WIDTH, min(last * WIDTH, vectors)


@compiled
def multiply(thread, threads, product, layer, x, scratch, y):
    """x [R, inputs] -> this thread's columns of y [R, columns]"""
    inputs = as_inputs(x, product.weights, scratch, thread)
    first, last = share_columns(product.bias.shape[1], thread, threads)
    multiply_vectors(first, last, product, layer, inputs, scratch.scales[thread], y)


@compiled
def multiply_heads(thread, threads, product, layer, x, cache, scratch):
    """x [R, D] -> what this thread's heads need of scratch.projected"""
    inputs = as_inputs(x, product.weights, scratch, thread)
    heads, vectors = cache.self_keys.shape[2], cache.self_keys.shape[4] // LANES
    first, last = share(heads, thread, threads)
    for part in range(0, product.bias.shape[1] // LANES, heads * vectors):
        start, stop = part + first * vectors, part + last * vectors
        multiply_vectors(start, stop, product, layer, inputs, scratch.scales[thread], scratch.projected)


@compiled
def multiply_vectors(first, last, product, layer, inputs, row_scales, y):
    weights, scale, offset, bias = (
        product.weights[layer],
        product.scale[layer],
        product.offset[layer],
        product.bias[layer],
    )
    steps = len(weights) // len(bias)
    for vector in range(first, last, WIDTH):
        count = min(WIDTH, last - vector)
        start, stop = vector * LANES, (vector + count) * LANES
        pitch = steps * LANES
        ahead = WIDTH * pitch if vector + WIDTH < last else 0  # behind the last one lies another thread's
        multiply_tiles(inputs, weights, vector * pitch, pitch, 0, ahead, count, LANES, steps, y, start)
        for row in range(len(inputs)):
            for column in range(start, stop, LANES):
                rescale(y, row, column, weights, row_scales[row], scale, offset, bias)


def as_inputs(x, weights, scratch, thread):
    """x as `tile` takes it for such weights; scratch.scales is what the rows of the product must be multiplied by."""


@overload(as_inputs)
def _as_inputs(x, weights, scratch, thread):
    return {types.int32: _as_quads, types.uint32: _as_pairs}.get(weights.dtype, _as_they_are)


def _as_quads(x, weights, scratch, thread):
    quantized = scratch.inputs[thread, : len(x)].view(np.uint8)
    quantize(x, quantized, scratch.scales[thread])
    return quantized.view(np.int32)


def _as_pairs(x, weights, scratch, thread):
    scratch.scales[thread, : len(x)] = 1
    halves = scratch.inputs[thread, : len(x)]
    shorten(x, halves)
    return halves.view(np.uint32)


def _as_they_are(x, weights, scratch, thread):
    scratch.scales[thread, : len(x)] = 1
    return x


@compiled
def multiply_tiles(x, w, start, pitch, jump, ahead, vectors, stride, steps, sums, column):
    """All rows of x, as many at once as there is a tile for, to `vectors` of the same rows of sums; see `tile`. `jump`:
    elements of w from one tile to the next. `ahead`: up to those that are needed soon, or None.
    """
    for vector in range(0, vectors - WIDTH + 1, WIDTH):
        place, to = start + vector // WIDTH * jump, column + vector * LANES
        row, rows = 0, len(x)
        while rows - row >= 6:
            _tile_6(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
            row += 6
        if rows - row >= 4:
            _tile_4(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
            row += 4
        if rows - row == 3:
            _tile_3(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
        elif rows - row == 2:
            _tile_2(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
        elif rows - row == 1:
            _tile_1(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
    for vector in range(vectors // WIDTH * WIDTH, vectors):
        for row in range(len(x)):
            place = start + vector // WIDTH * jump + vector % WIDTH * pitch
            _narrow_tile(x, row, w, place, pitch, None, stride, steps, sums, row, column + vector * LANES)


@compiled_loop
def quantize(x, quantized, scales):
    """Each row to bytes with a scale of its own, as `linear` does in prefill."""
    for row in range(len(x)):
        largest = max(TINY, magnitude(x[row]))
        scales[row] = largest / LEVELS + (x[row, 0] - x[row, 0])  # a row of NaN has no largest, and must stay NaN
        factor = LEVELS / largest
        for i in range(x.shape[1]):
            quantized[row, i] = np.uint8(np.int32(np.rint(x[row, i] * factor)) + ZERO_POINT)


@compiled
def magnitude(row):
    """The largest absolute value; NaN does not count."""
    largest = _magnitude_of_vectors(row)
    for i in range(len(row) // LANES * LANES, len(row)):
        largest = abs(row[i]) if abs(row[i]) > largest else largest
    return largest


@compiled
def maximum(row):
    """NaN does not count."""
    largest = _maximum_of_vectors(row)
    for i in range(len(row) // LANES * LANES, len(row)):
        largest = row[i] if row[i] > largest else largest
    return largest


@compiled
def shorten(x, halves):
    """To upper halves, and a zero if the last one has no other beside it."""
    width = x.shape[1]
    for row in range(len(x)):
        for i in range(width):
            halves[row, i] = as_element(x[row, i], halves)
        if width % PAIRS:
            halves[row, width] = 0


@compiled
def embed(batch, embedding, x):
    for r in range(len(x)):
        token, position = embedding.tokens[batch.tokens[r]], embedding.positions[batch.positions[r]]
        for i in range(x.shape[1]):
            x[r, i] = as_float(token[i]) * embedding.scale + as_float(position[i])


@compiled
def add(x, change):
    for row in range(len(x)):
        for i in range(x.shape[1]):
            x[row, i] += change[row, i]


@compiled_loop
def layer_norm(x, norm, layer):
    """Of x [R, D], in place."""
    weight, bias = norm.weight[layer], norm.bias[layer]
    width = x.shape[1]
    for row in range(len(x)):
        total = np.float32(0)
        for i in range(width):
            total += x[row, i]
        mean = total / np.float32(width)
        squares = np.float32(0)
        for i in range(width):
            squares += (x[row, i] - mean) * (x[row, i] - mean)
        factor = np.float32(1) / np.sqrt(squares / np.float32(width) + NORM_EPSILON)
        for i in range(width):
            x[row, i] = (x[row, i] - mean) * factor * weight[i] + bias[i]


@compiled
def attend_to_self(thread, threads, layer, cache, batch, scratch):
    """For this thread's heads: moves what rows go on from, writes the step's keys and values into the cache, and
    attends to all up to there.
    """
    heads, size = cache.self_keys.shape[2], cache.self_keys.shape[4]
    width = heads * size
    first, last = share(heads, thread, threads)
    for n in range(len(batch.slots)):
        start, stop = batch.starts[n], batch.starts[n + 1]
        position = batch.positions[start]
        moves, kept = batch.moves[batch.move_starts[n] : batch.move_starts[n + 1]], batch.kept[n]
        for head in range(first, last):
            if len(moves):
                move_keys(cache.self_keys[layer], head, moves, kept, position, scratch.moving[thread])
                move_values(cache.self_values[layer], head, moves, kept, position, scratch.moving[thread])
            part = head * size
            for r in range(start, stop):
                row = batch.rows[r]
                keys, values = cache.self_keys[layer, row, head], cache.self_values[layer, row, head]
                for i in range(size):
                    key, value = scratch.projected[r, width + part + i], scratch.projected[r, 2 * width + part + i]
                    keys[position // POSITIONS, i, position % POSITIONS] = as_element(key, keys)
                    values[position, i] = as_element(value, values)
                queries, mixed = scratch.projected[r : r + 1, part:], scratch.mixed[r : r + 1, part:]
                attend(queries, keys, values, position + 1, scratch.scores[thread], mixed)


@compiled
def move_keys(keys, head, moves, start, stop, moving):
    """Positions `start` up to `stop` of [rows, H, T / POSITIONS, E, POSITIONS], from rows to rows; all are read before
    any is written.
    """
    for i in range(len(moves)):
        source, copy = keys[moves[i, 0], head], moving[i]
        for position in range(start, stop):
            block, place = source[position // POSITIONS], position % POSITIONS
            for e in range(len(block)):
                copy[position, e] = block[e, place]
    for i in range(len(moves)):
        target, copy = keys[moves[i, 1], head], moving[i]
        for position in range(start, stop):
            block, place = target[position // POSITIONS], position % POSITIONS
            for e in range(len(block)):
                block[e, place] = copy[position, e]


@compiled
def move_values(values, head, moves, start, stop, moving):
    """The same of [rows, H, T, E]."""
    for i in range(len(moves)):
        moving[i, start:stop] = values[moves[i, 0], head, start:stop]
    for i in range(len(moves)):
        values[moves[i, 1], head, start:stop] = moving[i, start:stop]


@compiled
def attend_to_encoder(thread, threads, layer, cache, batch, scratch):
    """The beams of a request together, since they look at the same keys and values."""
    heads, size = cache.cross_keys.shape[2], cache.cross_keys.shape[4]
    first, last = share(heads, thread, threads)
    for n in range(len(batch.slots)):
        start, stop, slot = batch.starts[n], batch.starts[n + 1], batch.slots[n]
        for head in range(first, last):
            keys, values = cache.cross_keys[layer, slot, head], cache.cross_values[layer, slot, head]
            queries, mixed = scratch.projected[start:stop, head * size :], scratch.mixed[start:stop, head * size :]
            attend(queries, keys, values, batch.lengths[n], scratch.scores[thread], mixed)


@compiled
def attend(queries, keys, values, length, scores, mixed):
    """queries [K, E and more], keys [T / POSITIONS, E, POSITIONS] and values [T, E] up to `length` -> mixed [K, E]"""
    size = values.shape[1]
    scores = scores[: len(queries)]
    vectors = (length + LANES - 1) // LANES
    flat_keys, flat_values = keys.reshape(keys.size), values.reshape(values.size)
    multiply_tiles(queries, flat_keys, 0, LANES, size * POSITIONS, None, vectors, POSITIONS, size, scores, 0)
    softmax(scores, length)
    multiply_tiles(scores, flat_values, 0, LANES, WIDTH * LANES, None, size // LANES, size, length, mixed, 0)


@compiled_loop
def softmax(scores, length):
    for row in range(len(scores)):
        largest = maximum(scores[row, :length])
        total = np.float32(0)
        for i in range(length):
            scores[row, i] = exp(scores[row, i] - largest)
            total += scores[row, i]
        factor = np.float32(1) / total
        for i in range(length):
            scores[row, i] *= factor


@compiled_loop
def gelu(thread, threads, x):
    """x * Φ(x) on the columns that this thread multiplied. The error function is Abramowitz and Stegun's 7.1.26, whose
    error of 1.5e-7 is float32's, and which compilers make vectors of.
    """
    first, last = share_columns(x.shape[1], thread, threads)
    for row in range(len(x)):
        part = x[row, first * LANES : last * LANES]
        for i in range(len(part)):
            value = part[i]
            z = abs(value) * np.float32(0.70710678118654752)
            t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * z)
            series = np.float32(1.061405429) * t - np.float32(1.453152027)
            series = series * t + np.float32(1.421413741)
            series = series * t - np.float32(0.284496736)
            series = series * t + np.float32(0.254829592)
            tail = series * t * exp(-z * z)  # 1 - erf(z)
            part[i] = np.float32(0.5) * value * (np.float32(2) - tail if value >= 0 else tail)


@compiled_loop
def exp(x):
    """Of numbers up to zero, by Cephes' polynomial: a call of the C library would keep loops from becoming vectors."""
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays NaN
    whole = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4) * x + np.float32(1.3981999507e-3)
    series = series * x + np.float32(8.3334519073e-3)
    series = series * x + np.float32(4.1665795894e-2)
    series = series * x + np.float32(1.6666665459e-1)
    series = series * x + np.float32(5.0000001201e-1)
    return (series * x * x + x + np.float32(1)) * _power_of_two(np.int32(whole))


@compiled
def choose(thread, threads, vocabulary, known, batch, scratch):
    """For this thread's requests."""
    first, last = share(len(batch.slots), thread, threads)
    for n in range(first, last):
        start, stop = batch.starts[n], batch.starts[n + 1]
        for r in range(start, stop):
            apply_rules(r, stop - start == 1, vocabulary, batch, scratch)
        found = 2 * start, 2 * start + (1 if stop - start == 1 else 2 * (stop - start))
        find_best(start, stop, vocabulary, known, batch, scratch, *found)
        for i in range(*found):
            r, token = start + scratch.places[i] // vocabulary, scratch.places[i] % vocabulary
            scratch.log_probs[i] = (scratch.logits[r, token] - scratch.largest[r]) - scratch.log_sums[r]


@compiled
def apply_rules(r, greedy, vocabulary, batch, scratch):
    """To the logits, from which log-probs are made, of a greedy search; to the log-probs of a beam search."""
    logits = scratch.logits[r, :vocabulary]
    banned = batch.banned[batch.banned_starts[r] : batch.banned_starts[r + 1]]
    if batch.forced[r] >= 0:  # its log-prob is 0
        logits[:] = -np.inf
        logits[batch.forced[r]] = 0
        scratch.largest[r] = scratch.log_sums[r] = 0
        return
    if greedy:
        ban(logits, banned)
    scratch.largest[r] = maximum(logits)
    scratch.log_sums[r] = np.log(sum_of_exps(logits, scratch.largest[r]))
    ban(logits, banned)


@compiled
def ban(logits, tokens):
    for token in tokens:
        logits[token] = -np.inf


@compiled
def find_best(start, stop, vocabulary, known, batch, scratch, first, last):
    """The best of rows `start` to `stop`: sums and places from `first` up to `last`, the best first.

    Ties fall as in torch.topk of all the sums side by side, which (unless V < 128) is std::partial_sort of GNU's
    library: the same heap, in which nobody takes the place of an equal.
    """
    sums, places, count = scratch.sums[first:last], scratch.places[first:last], last - first
    filled = 0
    for r in range(start, stop):
        logits = scratch.logits[r, :known]
        less, log_sum, score = scratch.largest[r], scratch.log_sums[r], batch.scores[r]
        if count == 1:  # greedily the best logit, which is known more exactly
            less = log_sum = score = np.float32(0)
        offset, token = (r - start) * vocabulary, 0
        while filled < count and token < known:
            sums[filled], places[filled] = (logits[token] - less) - log_sum + score, offset + token
            filled, token = filled + 1, token + 1
            if filled == count:
                make_heap(sums, places)
        for begin in range(token, known, STRETCH):
            stretch = logits[begin : min(begin + STRETCH, known)]
            if any_above(stretch, less, log_sum, score, sums[0]):
                for i in range(len(stretch)):
                    value = (stretch[i] - less) - log_sum + score
                    if value > sums[0]:
                        sift(sums, places, 0, count, value, offset + begin + i)
    sort_heap(sums, places)
    for r in range(start, stop):
        if np.isnan(scratch.log_sums[r]):
            sums[:] = np.nan


@compiled_loop
def sum_of_exps(row, largest):
    total = np.float32(0)
    for i in range(len(row)):
        total += exp(row[i] - largest)
    return total


@compiled
def any_above(row, less, log_sum, score, limit):
    found = False
    for i in range(len(row)):
        found |= (row[i] - less) - log_sum + score > limit
    return found


@compiled
def make_heap(values, places):
    """std::make_heap; the lowest comes first."""
    for i in range((len(values) - 2) // 2, -1, -1):
        sift(values, places, i, len(values), values[i], places[i])


@compiled
def sort_heap(values, places):
    """std::sort_heap; the highest comes first."""
    for end in range(len(values) - 1, 0, -1):
        value, place = values[end], places[end]
        values[end], places[end] = values[0], places[0]
        sift(values, places, 0, end, value, place)


@compiled
def sift(values, places, hole, size, value, place):
    """std::__adjust_heap for a heap whose first is the lowest: fills the hole, and puts the value where it belongs."""
    top = child = hole
    while child < (size - 1) // 2:
        child = 2 * (child + 1)
        if values[child] > values[child - 1]:
            child -= 1
        values[hole], places[hole] = values[child], places[child]
        hole = child
    if size % 2 == 0 and child == (size - 2) // 2:
        child = 2 * child + 1
        values[hole], places[hole] = values[child], places[child]
        hole = child
    parent = (hole - 1) // 2
    while hole > top and values[parent] > value:
        values[hole], places[hole] = values[parent], places[parent]
        hole, parent = parent, (parent - 1) // 2
    values[hole], places[hole] = value, place


@intrinsic
def _power_of_two(context, exponent):
    """int32 -> float32, by the bits of its exponent"""

    def generate(context, builder, signature, arguments):
        biased = builder.add(arguments[0], INT32(127))
        return builder.bitcast(builder.shl(biased, INT32(23)), FLOAT)

    return types.float32(types.int32), generate


@compiled
def wait(arrived, done, threads):
    """Until all threads have come to the end of as many stages as this one; returns how many arrivals that makes."""
    if threads == 1:
        return done
    done += threads
    spins = 0
    arrive(arrived)
    while arrivals(arrived) < done:
        spins += 1
        if spins % SPINS == 0:
            offer_core()
    return done


@intrinsic
def arrive(context, arrived):
    """Adds one to arrived[0], at once for all threads."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.atomic_rmw("add", pointer, INT64(1), "seq_cst")
        return context.get_dummy_value()

    return types.void(arrived), generate


@intrinsic
def arrivals(context, arrived):
    """arrived[0] as the threads have it now."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(arrived), generate


@intrinsic
def offer_core(context):
    """sched_yield of the C library."""

    def generate(context, builder, signature, arguments):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(INT32, []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


def tile(rows: int, width: int) -> Any:
    """A numba intrinsic for so many rows and vectors of columns: LLVM instructions on vectors, which any CPU has in
    some form (one register of AVX-512, two of AVX, four of NEON). Weights are float32, the upper halves of float32 (as
    uint16), bfloat16 with PAIRS of inputs' side by side in a uint32, or int8 with QUADS in an int32, whose products are
    summed in one instruction where the CPU has it. Each row's sums are made in the same order whatever the number of
    rows.

    multiply(x, first, w, start, pitch, ahead, stride, steps, sums, row, column): sums[row + r, column + v * LANES + l]
    becomes the sum over i < steps of x[first + r, i] * w[start + v * pitch + i * stride + l], for r < rows and
    v < width. What lies `ahead` elements further on in w is asked for from memory, unless it is None.

    x: [R, I], inputs side by side: float32, uint32 of PAIRS, or int32 of QUADS unsigned bytes. w: flat. sums: float32,
    which for int8 weights get the bits of an int32.
    """

    @intrinsic
    def multiply(context, x, first, w, start, pitch, ahead, stride, steps, sums, row, column):
        kind = _KINDS[w.dtype]

        def generate(context, builder, signature, arguments):
            arrays = {0: x, 2: w, 8: sums}
            x_array, w_array, sums_array = (
                context.make_array(type_)(context, builder, arguments[place]) for place, type_ in arrays.items()
            )
            first_, start_, pitch_, ahead_, stride_, steps_, row_, column_ = (
                arguments[place] for place in (1, 3, 4, 5, 6, 7, 9, 10)
            )
            inputs = _rows(builder, x_array, first_, rows)
            targets = _rows(builder, sums_array, row_, rows)
            starts = [builder.add(start_, builder.mul(pitch_, INT64(vector))) for vector in range(width)]
            columns = [_at(builder, w_array.data, place, kind.size) for place in starts]
            totals = [[cgutils.alloca_once_value(builder, kind.sums(None)) for _ in columns] for _ in inputs]
            with _loop(builder, steps_) as index:
                step = builder.mul(index, stride_)
                if ahead is not types.none:
                    soon = builder.add(step, ahead_)
                    for each in columns:
                        _prefetch(builder, _at(builder, each, soon, kind.size))
                weights = [kind.columns(builder, _at(builder, each, step, kind.size)) for each in columns]
                _add_products(builder, kind, inputs, index, weights, totals)
            for target, row_totals in zip(targets, totals, strict=True):
                for vector, total in enumerate(row_totals):
                    place = _at(builder, target, builder.add(column_, INT64(vector * LANES)), 4)
                    _store(builder, builder.load(total), place)
            return context.get_dummy_value()

        return types.void(x, first, w, start, pitch, ahead, stride, steps, sums, row, column), generate

    return multiply


def _add_products(builder: ir.IRBuilder, kind: Any, inputs: Any, index: Any, weights: Any, totals: Any) -> None:
    """Of one step of a tile: each row's input times the weights of all columns."""
    for row_inputs, row_totals in zip(inputs, totals, strict=True):
        value = _splat(builder, _load(builder, _at(builder, row_inputs, index, 4), kind.inputs))
        for total, column_weights in zip(row_totals, weights, strict=True):
            builder.store(kind.add(builder, builder.load(total), value, column_weights), total)


@intrinsic
def rescale(context, y, row, column, weights, row_scale, scale, offset, bias):
    """y[row, column + l], the sums of a `tile` with such weights, to (y - offset) * (row_scale * scale) + bias, where
    scale, offset and bias are of the column, for l < LANES.
    """

    def generate(context, builder, signature, arguments):
        arrays = {0: y, 5: scale, 6: offset, 7: bias}
        y_array, *of_columns = (
            context.make_array(type_)(context, builder, arguments[place]) for place, type_ in arrays.items()
        )
        _, row_, column_, _, row_scale_, *_ = arguments
        [target] = _rows(builder, y_array, row_, 1)
        place = _at(builder, target, column_, 4)
        scales, offsets, biases = (_load(builder, _at(builder, each.data, column_, 4), FLOATS) for each in of_columns)
        sums = _load(builder, place, _KINDS[weights.dtype].sums)
        if sums.type is INTS:
            sums = builder.sitofp(sums, FLOATS)
        factor = builder.fmul(_splat(builder, row_scale_), scales)
        _store(builder, _call(builder, FMA, FLOATS, builder.fsub(sums, offsets), factor, biases), place)
        return context.get_dummy_value()

    return types.void(y, row, column, weights, row_scale, scale, offset, bias), generate


def largest_of(whatever: Callable[[ir.IRBuilder, Any], Any]) -> Any:
    """A numba intrinsic: the largest of what is made of a row's whole vectors; of NaN only if there is nothing else.
    The row's numbers must lie side by side. Compilers leave a loop that does this to scalars.
    """

    @intrinsic
    def largest(context, row):
        def generate(context, builder, signature, arguments):
            numbers = context.make_array(row)(context, builder, arguments[0])
            highest = cgutils.alloca_once_value(builder, FLOATS([-math.inf] * LANES))
            with _loop(builder, builder.sdiv(numbers.nitems, INT64(LANES))) as vector:
                values = whatever(builder, _load(builder, _at(builder, numbers.data, vector, 4 * LANES), FLOATS))
                builder.store(_call(builder, "llvm.maxnum.v16f32", FLOATS, builder.load(highest), values), highest)
            return _call(builder, "llvm.vector.reduce.fmax.v16f32", FLOAT, builder.load(highest))

        return types.float32(row), generate

    return largest


@intrinsic
def as_float(context, value):
    """float32, or the upper half of one -> float32"""

    def generate(context, builder, signature, arguments):
        if value == types.float32:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], INT32), INT32(16)), FLOAT)

    return types.float32(value), generate


@intrinsic
def as_element(context, value, array):
    """float32 -> what this array holds: itself, or its upper half, rounded to the nearest, to even ones at ties."""

    def generate(context, builder, signature, arguments):
        number = arguments[0]
        if array.dtype == types.float32:
            return number
        bits = builder.bitcast(number, INT32)
        last = builder.and_(builder.lshr(bits, INT32(16)), INT32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(INT32(0x7FFF), last)), INT32(16))
        is_number = builder.fcmp_ordered("ord", number, number)
        return builder.trunc(builder.select(is_number, rounded, INT32(0x7FC0)), HALF)

    return array.dtype(types.float32, array), generate


class _Floats:
    size, inputs, sums = 4, FLOAT, FLOATS

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any) -> Any:
        return _load(builder, pointer, FLOATS)

    @staticmethod
    def add(builder: ir.IRBuilder, total: Any, value: Any, column: Any) -> Any:
        return _call(builder, FMA, FLOATS, value, column, total)


class _UpperHalves(_Floats):
    size = 2

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any) -> Any:
        bits = builder.zext(_load(builder, pointer, HALVES), INTS)
        return builder.bitcast(_lower(builder, bits), FLOATS)


class _Together:
    """Several weights, and as many inputs, in one element of an array."""

    size, inputs = 4, INT32

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any) -> Any:
        return _load(builder, pointer, INTS)


class _Pairs(_Together):
    sums = FLOATS

    @staticmethod
    def add(builder: ir.IRBuilder, total: Any, value: Any, column: Any) -> Any:
        if HAS_BFLOATS:
            values, columns = (builder.bitcast(vector, BFLOATS) for vector in (value, column))
            return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, values, columns)
        for half in (_upper, _lower):  # in the instruction's order
            values, columns = (builder.bitcast(half(builder, vector), FLOATS) for vector in (value, column))
            total = _call(builder, FMA, FLOATS, values, columns, total)
        return total


def _upper(builder: ir.IRBuilder, pairs: Any) -> Any:
    return builder.and_(pairs, INTS([0xFFFF0000] * LANES))


def _lower(builder: ir.IRBuilder, pairs: Any) -> Any:
    return builder.shl(pairs, INTS([16] * LANES))


class _Quads(_Together):
    sums = INTS

    @staticmethod
    def add(builder: ir.IRBuilder, total: Any, value: Any, column: Any) -> Any:
        if HAS_VNNI:
            return _call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, total, value, column)
        inputs, weights = (builder.bitcast(vector, BYTES) for vector in (value, column))
        for place in range(QUADS):
            pick = ir.Constant(INTS, [QUADS * lane + place for lane in range(LANES)])
            wide_inputs = builder.zext(builder.shuffle_vector(inputs, inputs, pick), INTS)
            wide_weights = builder.sext(builder.shuffle_vector(weights, weights, pick), INTS)
            total = builder.add(total, builder.mul(wide_inputs, wide_weights))
        return total


_KINDS = {types.float32: _Floats, types.uint16: _UpperHalves, types.uint32: _Pairs, types.int32: _Quads}
FMA = "llvm.fma.v16f32"


@contextlib.contextmanager
def _loop(builder: ir.IRBuilder, count: Any) -> Iterator[Any]:
    """Of indices up to `count`. LLVM may not unroll it, which would take more registers than there are."""
    before, body, after = builder.block, *(builder.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed(">", count, INT64(0)), body, after)
    builder.position_at_end(body)
    index = builder.phi(INT64)
    index.add_incoming(INT64(0), before)
    yield index
    following = builder.add(index, INT64(1))
    index.add_incoming(following, builder.block)
    again = builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    once = builder.module.add_metadata([ir.MetaDataString(builder.module, "llvm.loop.unroll.disable")])
    # A loop's properties begin with themselves, and `add_metadata` takes only what is there already.
    properties = ir.values.MDValue(builder.module, [], name=str(len(builder.module.metadata)))
    properties.operands = properties, once
    again.set_metadata("llvm.loop", properties)
    builder.position_at_end(after)


def _rows(builder: ir.IRBuilder, array: Any, first: Any, count: int) -> list[Any]:
    """Where `count` rows of a two-dimensional array begin."""
    pitch = builder.extract_value(array.strides, 0)
    return [_at(builder, array.data, builder.mul(pitch, builder.add(first, INT64(row))), 1) for row in range(count)]


def _at(builder: ir.IRBuilder, pointer: Any, index: Any, size: int) -> Any:
    """The byte pointer `index` elements of `size` bytes behind `pointer`."""
    return builder.gep(builder.bitcast(pointer, BYTE.as_pointer()), [builder.mul(index, INT64(size))])


def _load(builder: ir.IRBuilder, pointer: Any, type_: Any) -> Any:
    """From any address."""
    return builder.load(builder.bitcast(pointer, type_.as_pointer()), align=1)


def _store(builder: ir.IRBuilder, value: Any, pointer: Any) -> None:
    """To any address."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def _prefetch(builder: ir.IRBuilder, pointer: Any) -> None:
    """Asks for what lies there to be read into the second cache; to no effect where nothing does."""
    pointer = builder.bitcast(pointer, BYTE.as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    reading, second_cache, data = INT32(0), INT32(2), INT32(1)
    builder.call(function, [pointer, reading, second_cache, data])


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    single = builder.insert_element(vector(ir.Undefined), value, INT32(0))
    return builder.shuffle_vector(single, vector(ir.Undefined), INTS([0] * LANES))


def _call(builder: ir.IRBuilder, name: str, type_: Any, *arguments: Any) -> Any:
    signature = ir.FunctionType(type_, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


_maximum_of_vectors = largest_of(lambda builder, values: values)
_magnitude_of_vectors = largest_of(lambda builder, values: _call(builder, "llvm.fabs.v16f32", FLOATS, values))
_tile_1, _tile_2, _tile_3, _tile_4, _tile_6 = (tile(rows, WIDTH) for rows in (1, 2, 3, 4, 6))
_narrow_tile = tile(1, 1)
