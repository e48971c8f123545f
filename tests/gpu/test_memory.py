"""The memory that the decoder takes: what `kv_cache_mib` allows, all of it before the first request."""

from __future__ import annotations

import pytest
import torch

from bench.decode import random_weights
from bench.gpu.harness import engine_of, geometry, random_request
from florence2.engine.backend import cache_bytes
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.weights import build_language_model, create_backend
from florence2_export.language import language_tensors

MIB = 2**20


@pytest.mark.parametrize("budget_rows", [1, 5, 200])
def test_keys_and_values_stay_within_the_budget(options, device, budget_rows):
    """As many rows as fit, and at least one."""
    config, dtype = geometry(options), torch.float16 if device == "cuda" else torch.float32
    precision = "float16" if device == "cuda" else "float32"
    tensors = {name: tensor.to(device) for name, tensor in language_tensors(random_weights(config), precision).items()}
    budget = budget_rows * sum(cache_bytes(config, dtype)) + 1000
    backend = create_backend(build_language_model(tensors, config, precision), config, 24, budget)
    assert backend.rows <= min(24, budget_rows) and backend.rows >= 1
    if device == "cpu":
        assert backend.rows == min(24, budget_rows)  # on a GPU graphs take a part of the budget
    assert backend.rows * sum(cache_bytes(config, dtype)) <= budget


def test_the_cache_takes_what_is_counted(options, device):
    config, dtype = geometry(options), torch.float16
    cache = PaddedCache(config, 8, dtype, torch.device(device))
    taken = sum(part.nbytes for part in (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values))
    assert taken == 8 * sum(cache_bytes(config, dtype))


def test_requests_take_no_memory_that_stays(cuda, options):
    """A second round of the same requests reserves nothing."""
    config = geometry(options)
    engine = engine_of(random_weights(config), config, options)
    requests = [random_request(config, seed, num_beams=3, max_new_tokens=70) for seed in range(8)]
    engine.generate(requests)
    reserved = torch.cuda.memory_reserved()
    engine.generate(requests)
    assert torch.cuda.memory_reserved() - reserved <= 2 * MIB
