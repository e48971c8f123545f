"""What happens to single numbers and rows between the products: embedding, layer norm, GELU, softmax."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from florence2.engine.cpu.kernels.compiler import compiled, compiled_loop
from florence2.engine.cpu.kernels.layout import LANES, QUADS
from florence2.engine.cpu.kernels.threads import share_columns
from florence2.engine.cpu.kernels.vectors import as_float, maximum, power_of_two

NORM_EPSILON = np.float32(1e-5)  # torch's and BART's


@compiled
def embed(batch, embedding, x):
    """Set x [R, D] to the sums of token and position embeddings."""
    for r in range(len(x)):
        token, position = batch.tokens[r], embedding.positions[batch.positions[r]]
        for i in range(x.shape[1]):
            x[r, i] = element_of(embedding.tokens, token, i) * embedding.scale + as_float(position[i])


def element_of(tokens, token, i):
    """Return element i of a token's embedding."""


@overload(element_of)
def _element_of(tokens, token, i):
    return _of_table if isinstance(tokens, types.Array) else _of_head


def _of_table(tokens, token, i):
    return as_float(tokens[token, i])


def _of_head(tokens, token, i):
    vector, lane = token // LANES, token % LANES
    steps = tokens.weights.shape[1] // tokens.bias.shape[1]
    quad = tokens.weights[0, (vector * steps + i // QUADS) * LANES + lane]
    return np.float32(np.int8(quad >> (8 * (i % QUADS)))) * tokens.scale[0, token]


@compiled
def add(x, change):
    """Add [R, D and more] to x [R, D], in place."""
    for row in range(len(x)):
        for i in range(x.shape[1]):
            x[row, i] += change[row, i]


@compiled_loop
def layer_norm(x, norm, layer):
    """Normalize x [R, D], in place."""
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


@compiled_loop
def gelu(thread, threads, x):
    """Apply x * Φ(x) to this thread's columns of x [R, F], in place.

    The error function is Abramowitz and Stegun's 7.1.26, which compilers vectorize; its error of 1.5e-7 is that of
    float32.
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
            tail = series * t * exp_of_negative(-z * z)  # 1 - erf(z)
            part[i] = np.float32(0.5) * value * (np.float32(2) - tail if value >= 0 else tail)


@compiled_loop
def softmax(scores, length):
    """Turn the first `length` scores of each row into weights that add up to one, in place."""
    for row in range(len(scores)):
        largest = maximum(scores[row, :length])
        total = np.float32(0)
        for i in range(length):
            scores[row, i] = exp_of_negative(scores[row, i] - largest)
            total += scores[row, i]
        factor = np.float32(1) / total
        for i in range(length):
            scores[row, i] *= factor


@compiled_loop
def sum_of_exps(row, largest):
    """Return the sum of exp(x - largest) over a row."""
    total = np.float32(0)
    for i in range(len(row)):
        total += exp_of_negative(row[i] - largest)
    return total


@compiled_loop
def exp_of_negative(x):
    """Return exp(x) for x <= 0, by Cephes' polynomial: compilers do not vectorize calls of the C library."""
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays NaN
    whole = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4) * x + np.float32(1.3981999507e-3)
    series = series * x + np.float32(8.3334519073e-3)
    series = series * x + np.float32(4.1665795894e-2)
    series = series * x + np.float32(1.6666665459e-1)
    series = series * x + np.float32(5.0000001201e-1)
    return (series * x * x + x + np.float32(1)) * power_of_two(np.int32(whole))
