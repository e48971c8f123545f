"""Which backend a model gets, what its memory takes, and what it must not import."""

import subprocess
import sys

import pytest
import torch

from florence2.config import TextConfig
from florence2.engine.backend import bytes_per_row
from florence2.engine.bart import LanguageModel
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.weights import create_backend

BASE = TextConfig(51328, 768, 6, 6, 12, 12, 3072, 3072, max_positions=1024, scale_embedding=False)
FLOATS = torch.float32


@pytest.fixture
def model(config) -> LanguageModel:
    return LanguageModel(config).eval().requires_grad_(False)


def test_a_row_takes_the_documented_memory(model, config):
    """All four tensors over all rows."""
    backend = CudaBackend(model, config, 4)
    cache = backend.cache
    parts = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values)
    assert sum(part.nbytes for part in parts) == 4 * backend.bytes_per_row == 4 * bytes_per_row(config.text, FLOATS)
    assert bytes_per_row(BASE, FLOATS) == 75_497_472
    assert bytes_per_row(BASE, torch.bfloat16) == 37_748_736


@pytest.mark.parametrize(("budget", "rows"), [(99.5, 24), (13.2, 13), (0.1, 1)])
def test_rows_are_chosen_from_a_budget(model, config, budget, rows):
    """The number that fits, never more than requested, never none. The budget is in rows of this model."""
    memory_bytes = int(budget * bytes_per_row(config.text, FLOATS))
    assert create_backend(model, config, 24, memory_bytes).rows == rows


def test_a_model_on_a_cpu_gets_the_backend_for_cpus(model, config):
    """The device of the weights decides."""
    assert isinstance(create_backend(model, config), CpuBackend)


def test_the_weights_of_a_model_can_be_taken_once(model, config):
    """A second backend would otherwise decode with no layers at all."""
    create_backend(model, config)
    with pytest.raises(ValueError, match="taken before"):
        create_backend(model, config)


@pytest.mark.parametrize(
    ("backend", "blocked"),
    [("cuda", ("numba", "llvmlite", "florence2.engine.cpu")), ("cpu", ("florence2.engine.cuda",))],
)
def test_a_backend_imports_only_what_it_needs(backend, blocked):
    """A GPU decodes without numba and llvmlite, and no backend needs the other."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
from tests.tiny_model import tiny_config
from florence2.engine.bart import LanguageModel
from florence2.engine.engine import Engine
from florence2.engine.{backend}.backend import {backend.title()}Backend
config = tiny_config()
Engine({backend.title()}Backend(LanguageModel(config).requires_grad_(False), config, 2), config)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
