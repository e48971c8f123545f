"""The cache's memory, slots and copies."""

import pytest
import torch

from florence2.config import TextConfig
from florence2.engine.kv_cache import KVCache, bytes_per_row, rows_within

TEXT = TextConfig(40, 16, 1, 2, 2, 4, 24, 32, max_positions=10, scale_embedding=False)
BASE = TextConfig(51328, 768, 6, 6, 12, 12, 3072, 3072, max_positions=1024, scale_embedding=False)
FLOATS = torch.float32


@pytest.fixture
def cache() -> KVCache:
    return KVCache(TEXT, 4, FLOATS, torch.device("cpu"))


def test_a_row_takes_what_the_documents_say(cache):
    """All four tensors over all rows."""
    parts = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values)
    assert sum(part.nbytes for part in parts) == 4 * cache.bytes_per_row == 4 * bytes_per_row(TEXT, FLOATS)
    assert bytes_per_row(BASE, FLOATS) == 75_497_472
    assert bytes_per_row(BASE, torch.bfloat16) == 37_748_736


@pytest.mark.parametrize(("mib", "rows"), [(8192, 24), (1000, 13), (1, 1)])
def test_rows_are_chosen_from_a_budget(mib, rows):
    """As many as fit, never more than asked, never none."""
    assert rows_within(mib * 2**20, 24, BASE, FLOATS) == rows


def test_the_lowest_free_slot_is_taken(cache):
    """So that live ones lie close together."""
    assert [cache.take_slot() for _ in range(3)] == [0, 1, 2]
    cache.free_slot(0)
    cache.free_slot(1)
    assert cache.take_slot() == 0
    assert cache.used_slots == 2


def test_rows_are_read_before_they_are_written(cache):
    """Beams that swap places keep what each has decoded."""
    cache.self_keys.normal_()
    before = cache.self_keys.clone()
    cache.copy_rows([(1, 0), (0, 1)], slice(3, 6))
    assert torch.equal(cache.self_keys[:, [0, 1], :, 3:6], before[:, [1, 0], :, 3:6])
    assert torch.equal(cache.self_keys[:, :, :, :3], before[:, :, :, :3])
    assert torch.equal(cache.self_keys[:, 2:], before[:, 2:])
