"""The memory that the decoder takes: what `kv_cache_mib` allows, all of it before the first request."""

from __future__ import annotations

import pytest
import torch

from bench.decode import random_weights
from bench.gpu.harness import engine_of, geometry, random_request
from florence2.engine.backend import cache_bytes
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.engine import Engine
from florence2.engine.weights import build_language_model, rows_within
from florence2_export.language import language_tensors

MIB = 2**20
LIBRARIES = 128 * MIB  # which cuBLAS and its like take once, whatever the model


@pytest.fixture
def model(options, device):
    config, precision = geometry(options), "float16" if device == "cuda" else "float32"
    tensors = {name: tensor.to(device) for name, tensor in language_tensors(random_weights(config), precision).items()}
    return build_language_model(tensors, config, precision)


@pytest.mark.parametrize("rows", [1, 5, 24])
def test_there_are_as_many_rows_as_the_budget_allows(model, options, rows):
    config = geometry(options)
    budget = CudaBackend.memory_bytes(model, config, rows)
    assert rows_within(budget, CudaBackend, model, config, 24) == rows
    assert rows_within(budget - 1, CudaBackend, model, config, 24) == max(1, rows - 1)


def test_the_cache_takes_what_is_counted(options, device):
    config, dtype = geometry(options), torch.float16
    cache = PaddedCache(config, 8, dtype, torch.device(device))
    taken = sum(part.nbytes for part in (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values))
    assert taken == 8 * sum(cache_bytes(config, dtype))


def test_the_device_lends_no_more_than_the_budget(cuda, model, options):
    """Measured on the whole device, with the graphs in the driver, after a full batch of each kind of request."""
    config, rows = geometry(options), 24
    budget = CudaBackend.memory_bytes(model, config, rows)
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    engine = Engine(CudaBackend(model, config, rows), config, prefill_seconds=60)
    for beams in (1, 3, 5):
        engine.generate([random_request(config, seed, num_beams=beams, max_new_tokens=100) for seed in range(24)])
    after, _ = torch.cuda.mem_get_info()
    assert before - after <= budget + LIBRARIES


def test_requests_take_no_memory_that_stays(cuda, options):
    """A second round of the same requests reserves nothing."""
    config = geometry(options)
    engine = engine_of(random_weights(config), config, options)
    requests = [random_request(config, seed, num_beams=3, max_new_tokens=70) for seed in range(8)]
    engine.generate(requests)
    reserved = torch.cuda.memory_reserved()
    engine.generate(requests)
    assert torch.cuda.memory_reserved() - reserved <= 2 * MIB
