"""Attention over the cache, by views and padded, against torch's own over each row's own keys and values."""

import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from florence2.config import TextConfig
from florence2.engine.attention import PaddedStep, Span, ViewedStep, bucket
from florence2.engine.kv_cache import KVCache

TEXT = TextConfig(40, 16, 1, 2, 2, 4, 24, 32, max_positions=300, scale_embedding=False)
ROWS, LAYER = 12, 1


def random_cache() -> KVCache:
    cache = KVCache(TEXT, ROWS, torch.float32, torch.device("cpu"))
    for part in (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values):
        part.normal_()
    return cache


def random_spans(chance: random.Random) -> list[Span]:
    """Some requests side by side and some apart, their slots in any order."""
    slots = chance.sample(range(ROWS), ROWS)
    spans, row = [], chance.randrange(3)
    while row < ROWS:
        beams = min(chance.choice([1, 1, 3, 3, 5]), ROWS - row)
        position, encoder_length = chance.choice([0, 5, 63, 64, 200, 299]), chance.choice([70, 70, 71, 300])
        spans.append(Span(range(row, row + beams), slots.pop(), position, encoder_length))
        row += beams + chance.choice([0, 0, 0, 2])
    return spans


def expected(queries, keys, values):
    """[H, E] over [H, S, E]"""
    return scaled_dot_product_attention(queries[None, :, None], keys[None], values[None], scale=1.0)[0, :, 0]


@pytest.mark.parametrize("seed", range(25))
def test_every_row_sees_its_own_past_and_its_request_s_encoder(seed):
    """Whoever its neighbours are, however long they and it are; viewed and padded alike."""
    torch.manual_seed(seed)
    spans = random_spans(random.Random(seed))
    rows = [(span, row) for span in spans for row in span.rows]
    queries, keys, values = torch.randn(3, len(rows), 4, 4)
    for padded in (False, True):
        cache = random_cache()
        if padded:
            step = PaddedStep(cache, ROWS, bucket(max(span.position for span in spans) + 1, 300), 300)
            step.fill([0] * len(rows), spans)
            places = [row for _, row in rows]
            given = torch.randn(3, ROWS, 4, 4)
            given[:, places] = torch.stack([queries, keys, values])
            to_self = step.attend_to_self(LAYER, *given)[places]
            to_encoder = step.attend_to_encoder(LAYER, given[0])[places]
        else:
            step = ViewedStep(cache, spans)
            to_self = step.attend_to_self(LAYER, queries, keys, values)
            to_encoder = step.attend_to_encoder(LAYER, queries)
        for i, (span, row) in enumerate(rows):
            past = (LAYER, row, slice(None), slice(span.position + 1))
            assert torch.equal(cache.self_keys[LAYER, row, :, span.position], keys[i])
            torch.testing.assert_close(to_self[i], expected(queries[i], cache.self_keys[past], cache.self_values[past]))
            own = (LAYER, span.slot, slice(None), slice(span.encoder_length))
            torch.testing.assert_close(
                to_encoder[i], expected(queries[i], cache.cross_keys[own], cache.cross_values[own])
            )


def test_neighbours_of_one_kind_are_attended_to_in_one_product():
    """Eight requests of three beams in the first slots: one run of rows, one of slots, and no mask if as long."""
    cache = KVCache(TEXT, 24, torch.float32, torch.device("cpu"))
    step = ViewedStep(cache, [Span(range(3 * i, 3 * i + 3), i, 7, 90) for i in range(8)])
    [own], [cross] = step._self_runs, step._cross_runs
    assert (own.batch, own.cache, own.length, own.bias) == (slice(0, 24), slice(0, 24), 8, None)
    assert (cross.batch, cross.cache, cross.length, cross.bias) == (slice(0, 24), slice(0, 8), 90, None)


@pytest.mark.parametrize(("length", "size"), [(1, 64), (64, 64), (65, 128), (300, 300), (257, 300)])
def test_buckets(length, size):
    """Powers of two from 64 on, and never more than there is."""
    assert bucket(length, 300) == size
