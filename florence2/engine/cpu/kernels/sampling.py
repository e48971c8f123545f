"""Draw a token from the distribution that transformers' warpers leave: temperature, then top k, then top p."""

from __future__ import annotations

import numpy as np

from florence2.engine.cpu.kernels.compiler import compiled, compiled_loop
from florence2.engine.cpu.kernels.pointwise import exp_of_negative

LEAST = 1e-6  # of top p: 0 leaves the most likely token
STRETCH = 128  # weights that are added at once
ZERO, ONE = np.array([0, 1], np.float32).view(np.int32)


@compiled
def draw_token(logits, largest, weights, draw, temperature, top_k, top_p):
    """Return the token at the quantile `draw` of what the logits' distribution becomes, and its log-prob there.

    `weights`: as many numbers as there are logits, overwritten with the tokens' relative probabilities.
    """
    weigh(logits, largest, temperature, weights)
    keys = weights.view(np.int32)  # numbers that are not negative have the order of their bits
    if 0 < top_k < len(weights):
        drop(weights, keys, lowest_key(weights, keys, True, top_k), 0.0)
    if top_p < 1:
        target = max(np.float64(top_p), LEAST) * sum_from(weights, keys, False, ZERO)
        lowest = lowest_key(weights, keys, False, target)
        drop(weights, keys, lowest, sum_from(weights, keys, False, lowest) - target)
    total = sum_from(weights, keys, False, ZERO)
    token = find(weights, keys, draw * total)
    return token, np.float32(np.log(weights[token] / total))


@compiled
def find(weights, keys, quantile):
    """Return the first token up to which the weights add up to more than the quantile."""
    first, reached = 0, 0.0
    while first + STRETCH < len(weights):
        more = sum_from(weights[first : first + STRETCH], keys[first : first + STRETCH], False, ZERO)
        if reached + more > quantile:
            break
        first, reached = first + STRETCH, reached + more
    for i in range(first, len(weights)):
        reached += weights[i]
        if weights[i] > 0 and reached > quantile:
            return i
    return np.argmax(weights)  # the sum was rounded down to less than the quantile


@compiled_loop
def weigh(logits, largest, temperature, weights):
    """Set weights to the probabilities at a temperature, as multiples of the highest."""
    for i in range(len(logits)):
        x = (logits[i] - largest) / temperature
        weights[i] = np.float32(0) if x < np.float32(-87) else exp_of_negative(x)


@compiled
def lowest_key(weights, keys, counted, target):
    """Return the highest key such that the weights of at least this key, or their count, add up to the target."""
    low, high = ZERO, np.int32(ONE + 1)
    while high - low > 1:
        middle = np.int32(low + (high - low) // 2)
        if sum_from(weights, keys, counted, middle) >= target:
            low = middle
        else:
            high = middle
    return low


@compiled_loop
def sum_from(weights, keys, counted, lowest):
    """Return the sum, or the count, of the weights whose keys are at least `lowest`."""
    total = 0.0
    if counted:
        for i in range(len(keys)):
            total += 1.0 if keys[i] >= lowest else 0.0
    else:
        for i in range(len(keys)):
            total += np.float64(weights[i]) if keys[i] >= lowest else 0.0
    return total


@compiled
def drop(weights, keys, lowest, excess):
    """Set the weights below a key to zero, and as many of the equal weights there as fit into `excess`.

    For top p, transformers drops equal ones too, no matter which. For top k it keeps them all.
    """
    for i in range(len(weights)):
        if keys[i] < lowest:
            weights[i] = 0
        elif keys[i] == lowest and weights[i] <= excess:
            excess -= weights[i]
            weights[i] = 0
