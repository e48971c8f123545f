"""The rules of the next token and the best continuations, as `scoring` finds them with torch."""

from __future__ import annotations

import numpy as np

from florence2.engine.cpu.kernels.compiler import compiled
from florence2.engine.cpu.kernels.pointwise import sum_of_exps
from florence2.engine.cpu.kernels.sampling import draw_token
from florence2.engine.cpu.kernels.threads import share
from florence2.engine.cpu.kernels.vectors import maximum

STRETCH = 128  # logits that are looked at together


@compiled
def choose(thread, threads, size, vocabulary, batch, scratch):
    """Set scratch.best_… for this thread's requests, from `size` scratch.logits of each row."""
    first, last = share(len(batch.slots), thread, threads)
    for n in range(first, last):
        start, stop = batch.starts[n], batch.starts[n + 1]
        for r in range(start, stop):
            apply_rules(r, stop - start == 1, size, batch, scratch)
        if batch.draws[start] >= 0:
            i, row, weights = 2 * start, scratch.logits[start], scratch.weights[thread]
            scratch.best_places[i], scratch.best_log_probs[i] = draw_token(
                row[: vocabulary.known], scratch.largest[start], weights[: vocabulary.known], batch.draws[start],
                batch.temperatures[start], batch.top_ks[start], batch.top_ps[start],
            )  # fmt: skip
            scratch.best_log_masses[i] = log_mass(start, scratch.best_places[i], vocabulary, scratch)
            continue
        found = 2 * start, 2 * start + (1 if stop - start == 1 else 2 * (stop - start))
        find_best(start, stop, size, vocabulary.known, batch, scratch, *found)
        for i in range(*found):
            r, token = start + scratch.best_places[i] // size, scratch.best_places[i] % size
            scratch.best_log_probs[i] = (scratch.logits[r, token] - scratch.largest[r]) - scratch.log_sums[r]
            scratch.best_log_masses[i] = log_mass(r, token, vocabulary, scratch)


@compiled
def log_mass(r, token, vocabulary, scratch):
    """Return the log of the probability, before the rules, of a token or of the locations near it."""
    first, last = token, token
    if vocabulary.first_location <= token <= vocabulary.last_location:
        first = max(token - vocabulary.near, vocabulary.first_location)
        last = min(token + vocabulary.near, vocabulary.last_location)
    size = scratch.raw_logits.shape[1]
    logits = scratch.raw_logits[r] if scratch.kept_raw[r] else scratch.logits[r, :size]
    near = sum_of_exps(logits[first : last + 1], scratch.raw_largest[r])
    return min(np.log(near) - scratch.raw_log_sums[r], np.float32(0))


@compiled
def apply_rules(r, greedy, size, batch, scratch):
    """Apply the rules of row r to the logits of a greedy search, or to the log-probs of a beam search."""
    logits = scratch.logits[r, :size]
    banned = batch.banned[batch.banned_starts[r] : batch.banned_starts[r + 1]]
    penalized = batch.penalized[batch.penalized_starts[r] : batch.penalized_starts[r + 1]]
    scratch.kept_raw[r] = batch.forced[r] >= 0 or len(banned) > 0 or len(penalized) > 0
    if scratch.kept_raw[r]:
        scratch.raw_logits[r] = logits
    largest = maximum(logits)
    log_sum = np.log(sum_of_exps(logits, largest))
    scratch.raw_largest[r], scratch.raw_log_sums[r] = largest, log_sum
    if batch.forced[r] >= 0:  # its log-prob is 0
        logits[:] = -np.inf
        logits[batch.forced[r]] = 0
        scratch.largest[r] = scratch.log_sums[r] = 0
        return
    if greedy and (len(penalized) or len(banned)):
        penalize(logits, penalized, batch.penalties[r])
        ban(logits, banned)
        largest = maximum(logits)
        log_sum = np.log(sum_of_exps(logits, largest))
    if len(penalized) and not greedy:
        for i in range(len(logits)):
            logits[i] = (logits[i] - largest) - log_sum
        largest, log_sum = np.float32(0), log_sum - log_sum  # NaN, which means a broken row, stays NaN
        penalize(logits, penalized, batch.penalties[r])
    scratch.largest[r], scratch.log_sums[r] = largest, log_sum
    ban(logits, banned)


@compiled
def penalize(scores, tokens, penalty):
    """Make tokens less likely if the penalty is above 1, and more likely below."""
    for token in tokens:
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty


@compiled
def ban(logits, tokens):
    """Make tokens impossible."""
    for token in tokens:
        logits[token] = -np.inf


@compiled
def find_best(start, stop, size, known, batch, scratch, first, last):
    """Set sums and places `first` up to `last` to the best of rows `start` up to `stop`, the best first.

    Ties fall as in torch.topk over all the sums side by side, which (unless V < 128) is std::partial_sort of GNU's
    library: the same heap, in which an equal sum replaces none.
    """
    sums, places, count = scratch.best_sums[first:last], scratch.best_places[first:last], last - first
    filled = 0
    for r in range(start, stop):
        logits = scratch.logits[r, :known]
        less, log_sum, score = scratch.largest[r], scratch.log_sums[r], batch.beam_scores[r]
        if count == 1:  # greedy: compare the logits, which are more exact than their log-probs
            less = log_sum = score = np.float32(0)
        offset, token = (r - start) * size, 0
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


@compiled
def any_above(row, less, log_sum, score, limit):
    """Return whether any sum of a row is above the limit: without branches, so that it is vectorized."""
    found = False
    for i in range(len(row)):
        found |= (row[i] - less) - log_sum + score > limit
    return found


@compiled
def make_heap(values, places):
    """Arrange values as std::make_heap does, the lowest first."""
    for i in range((len(values) - 2) // 2, -1, -1):
        sift(values, places, i, len(values), values[i], places[i])


@compiled
def sort_heap(values, places):
    """Sort a heap as std::sort_heap does, the highest first."""
    for end in range(len(values) - 1, 0, -1):
        value, place = values[end], places[end]
        values[end], places[end] = values[0], places[0]
        sift(values, places, 0, end, value, place)


@compiled
def sift(values, places, hole, size, value, place):
    """Fill the hole in a heap and insert a value, as std::__adjust_heap does; the lowest comes first."""
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
