"""Linear layers: x [R, inputs] times packed weights, in tiles of up to six rows and four vectors of columns."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from florence2.engine.cpu.kernels.compiler import compiled, compiled_loop
from florence2.engine.cpu.kernels.layout import BLOCK, LANES, LEVELS, PAIRS, WIDTH, ZERO_POINT
from florence2.engine.cpu.kernels.threads import share, share_columns
from florence2.engine.cpu.kernels.tiles import KINDS, rescale, tile
from florence2.engine.cpu.kernels.vectors import as_element, magnitude

TINY = np.float32(1e-30)  # the scale of a row of zeros
tile_1, tile_2, tile_3, tile_4, tile_6 = (tile(rows, WIDTH) for rows in (1, 2, 3, 4, 6))
narrow_tile = tile(1, 1)


@compiled
def multiply(thread, threads, product, layer, x, scratch, y):
    """Compute this thread's columns: x [R, inputs] -> y [R, columns]."""
    inputs = as_inputs(x, product.weights, scratch, thread)
    first, last = share_columns(product.bias.shape[1], thread, threads)
    multiply_vectors(first, last, product, layer, inputs, scratch.row_scales[thread], y)


@compiled
def multiply_heads(thread, threads, product, layer, x, cache, scratch):
    """Compute what this thread's heads need: x [R, D] -> some columns of scratch.projected."""
    inputs = as_inputs(x, product.weights, scratch, thread)
    heads, vectors = cache.self_keys.shape[2], cache.self_keys.shape[4] // LANES
    first, last = share(heads, thread, threads)
    for part in range(0, product.bias.shape[1] // LANES, heads * vectors):
        start, stop = part + first * vectors, part + last * vectors
        multiply_vectors(start, stop, product, layer, inputs, scratch.row_scales[thread], scratch.projected)


@compiled
def multiply_vectors(first, last, product, layer, inputs, row_scales, y):
    """Compute the columns in vectors `first` up to `last`; inputs: as `as_inputs` returns them."""
    weights, bias = product.weights[layer], product.bias[layer]
    scale, offset = product.scale[layer], product.offset[layer]
    stride = LANES * unit_of(weights)
    steps = len(weights) // len(bias) // unit_of(weights)
    for vector in range(first, last, WIDTH):
        count = min(WIDTH, last - vector)
        start, stop = vector * LANES, (vector + count) * LANES
        pitch = steps * stride
        ahead = WIDTH * pitch if vector + WIDTH < last else 0  # another thread multiplies what follows the last one
        multiply_tiles(inputs, weights, vector * pitch, pitch, 0, ahead, count, stride, steps, y, start)
        for row in range(len(inputs)):
            for column in range(start, stop, LANES):
                rescale(y, row, column, weights, row_scales[row], scale, offset, bias)


def unit_of(weights):
    """Return how many elements of such weights a step of `tile` takes for one column."""


@overload(unit_of)
def _unit_of(weights):
    unit = KINDS[weights.dtype].unit
    return lambda weights: unit


def as_inputs(x, weights, scratch, thread):
    """Return x as `tile` takes it for such weights, and set scratch.row_scales, by which sums must be multiplied."""


@overload(as_inputs)
def _as_inputs(x, weights, scratch, thread):
    return {types.int32: _as_quads, types.uint8: _as_quads, types.uint32: _as_pairs}.get(weights.dtype, _as_they_are)


def _as_quads(x, weights, scratch, thread):
    quantized = scratch.inputs[thread, : len(x)].view(np.uint8)
    quantize_rows(x, quantized, scratch.row_scales[thread])
    return quantized.view(np.int32)


def _as_pairs(x, weights, scratch, thread):
    scratch.row_scales[thread, : len(x)] = 1
    halves = scratch.inputs[thread, : len(x)]
    shorten(x, halves)
    return halves.view(np.uint32)


def _as_they_are(x, weights, scratch, thread):
    scratch.row_scales[thread, : len(x)] = 1
    return x


@compiled
def multiply_tiles(x, w, start, pitch, jump, ahead, vectors, stride, steps, sums, column):
    """Multiply all rows of x by `vectors` vectors of columns, as many rows at once as there is a tile for.

    The sums go into the same rows of `sums`, from `column` on. `jump`: elements of w from one tile to the next. The
    other arguments are those of `tile`.
    """
    for vector in range(0, vectors - WIDTH + 1, WIDTH):
        place, to = start + vector // WIDTH * jump, column + vector * LANES
        row, rows = 0, len(x)
        while rows - row >= 6:
            tile_6(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
            row += 6
        if rows - row >= 4:
            tile_4(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
            row += 4
        if rows - row == 3:
            tile_3(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
        elif rows - row == 2:
            tile_2(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
        elif rows - row == 1:
            tile_1(x, row, w, place, pitch, ahead, stride, steps, sums, row, to)
    for vector in range(vectors // WIDTH * WIDTH, vectors):
        for row in range(len(x)):
            place = start + vector // WIDTH * jump + vector % WIDTH * pitch
            narrow_tile(x, row, w, place, pitch, None, stride, steps, sums, row, column + vector * LANES)


@compiled_loop
def quantize_rows(x, quantized, scales):
    """Round each row to bytes with a scale of its own, as `linear` does in prefill, and complete its last block."""
    width = x.shape[1]
    for row in range(len(x)):
        largest = max(TINY, magnitude(x[row]))
        scales[row] = largest / LEVELS + (x[row, 0] - x[row, 0])  # NaN for a row of NaNs, which `magnitude` ignores
        factor = LEVELS / largest
        quantized[row, width : -(-width // BLOCK) * BLOCK] = ZERO_POINT
        for i in range(width):
            quantized[row, i] = np.uint8(np.int32(np.rint(x[row, i] * factor)) + ZERO_POINT)


@compiled
def shorten(x, halves):
    """Round each row to upper halves, and append a zero if their number is odd."""
    width = x.shape[1]
    for row in range(len(x)):
        for i in range(width):
            halves[row, i] = as_element(x[row, i], halves)
        if width % PAIRS:
            halves[row, width] = 0
