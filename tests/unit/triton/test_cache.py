"""The cache is bounded in bytes, and the least recently used entries go first."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from florence2.triton.cache import ENTRY_BYTES, MIB, Cache

SIZE = ENTRY_BYTES + 1000


def kept(cache: Cache, keys) -> list:
    """Return the keys that are still there, without using them."""
    return [key for key in keys if key in cache._entries]


def test_the_least_recently_used_entries_make_room():
    """Reading counts as use, and putting an equal key again changes nothing."""
    cache: Cache[int] = Cache(3 * SIZE)
    for number in range(3):
        cache.put(number, 10 * number, 1000)
    cache.put(1, 10 * 1, 1000)
    assert cache.get(0) is not None
    cache.put(3, 10 * 3, 1000)
    assert kept(cache, range(4)) == [0, 2, 3]
    assert (len(cache), cache.bytes, cache.evictions) == (3, 3 * SIZE, 1)
    cache.put("large", 7, 2000)
    assert kept(cache, (0, 2, 3, "large")) == [3, "large"], "two had to go"
    assert (cache.bytes, cache.evictions) == (2 * SIZE + 1000, 3)


def test_an_entry_larger_than_the_cache_evicts_nothing():
    cache: Cache[int] = Cache(2 * SIZE)
    cache.put("small", 10 * 1, 1000)
    cache.put("huge", 2, 2 * SIZE)
    assert kept(cache, ("small", "huge")) == ["small"] and cache.evictions == 0


def test_one_of_no_bytes_stays_empty():
    cache: Cache[int] = Cache(0)
    cache.put("empty", 1, 0)
    assert cache.get("empty") is None and len(cache) == cache.bytes == 0


def test_its_size_is_an_option_of_the_server(monkeypatch):
    """There is a default."""
    monkeypatch.setenv("A_VARIABLE", "7")
    assert Cache.of_this_server("A_VARIABLE", 256).most_bytes == 7 * MIB
    monkeypatch.delenv("A_VARIABLE")
    assert Cache.of_this_server("A_VARIABLE", 256).most_bytes == 256 * MIB


@pytest.mark.parametrize("entries", [1, 5])
def test_many_threads_share_it(entries):
    """Whatever they do, it holds what was put, within its bounds, and its bytes are those of its entries."""
    cache: Cache[int] = Cache(entries * SIZE)
    wrong = []

    def use(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 20, 500).tolist():
            found = cache.get(number)
            if found is None:
                cache.put(number, 10 * number, 1000)
            elif found != 10 * number:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.bytes == len(cache) * SIZE <= entries * SIZE
