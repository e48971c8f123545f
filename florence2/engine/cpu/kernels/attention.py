"""Attention over the cache, and the moves of its rows."""

from __future__ import annotations

from florence2.engine.cpu.kernels.compiler import compiled
from florence2.engine.cpu.kernels.layout import LANES, POSITIONS, WIDTH
from florence2.engine.cpu.kernels.pointwise import softmax
from florence2.engine.cpu.kernels.products import multiply_tiles
from florence2.engine.cpu.kernels.threads import share
from florence2.engine.cpu.kernels.vectors import as_element


@compiled
def attend_to_self(thread, threads, layer, cache, batch, scratch):
    """Carry out the moves, write the step's keys and values, and attend to all positions so far: this thread's heads.

    scratch.projected -> scratch.attended [R, H * E]
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
                queries, attended = scratch.projected[r : r + 1, part:], scratch.attended[r : r + 1, part:]
                attend(queries, keys, values, position + 1, scratch.scores[thread], attended)


@compiled
def move_keys(keys, head, moves, start, stop, moving):
    """Copy positions `start` up to `stop` from rows to rows of [rows, H, T / POSITIONS, E, POSITIONS].

    All are read before any is written.
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
    """Copy positions `start` up to `stop` from rows to rows of [rows, H, T, E], as `move_keys` does."""
    for i in range(len(moves)):
        moving[i, start:stop] = values[moves[i, 0], head, start:stop]
    for i in range(len(moves)):
        values[moves[i, 1], head, start:stop] = moving[i, start:stop]


@compiled
def attend_to_encoder(thread, threads, layer, cache, batch, scratch):
    """Attend to each request's slot, all its beams at once: they share its keys and values.

    scratch.projected -> this thread's heads of scratch.attended [R, H * E]
    """
    heads, size = cache.cross_keys.shape[2], cache.cross_keys.shape[4]
    first, last = share(heads, thread, threads)
    for n in range(len(batch.slots)):
        start, stop, slot = batch.starts[n], batch.starts[n + 1], batch.slots[n]
        for head in range(first, last):
            keys, values = cache.cross_keys[layer, slot, head], cache.cross_values[layer, slot, head]
            part = head * size
            queries, attended = scratch.projected[start:stop, part:], scratch.attended[start:stop, part:]
            attend(queries, keys, values, batch.lengths[n], scratch.scores[thread], attended)


@compiled
def attend(queries, keys, values, length, scores, attended):
    """Attend to positions below `length`: queries [K, E and more] -> attended [K, E and more].

    keys: [T / POSITIONS, E, POSITIONS]; values: [T, E]; scores: [K or more, T], overwritten.
    """
    size = values.shape[1]
    scores = scores[: len(queries)]
    vectors = (length + LANES - 1) // LANES
    flat_keys, flat_values = keys.reshape(keys.size), values.reshape(values.size)
    multiply_tiles(queries, flat_keys, 0, LANES, size * POSITIONS, None, vectors, POSITIONS, size, scores, 0)
    softmax(scores, length)
    multiply_tiles(scores, flat_values, 0, LANES, WIDTH * LANES, None, size // LANES, size, length, attended, 0)
