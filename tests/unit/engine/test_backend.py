"""Which backend a model gets, what its memory takes, and what it must not import."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from florence2.config import TextConfig
from florence2.engine.backend import cache_bytes
from florence2.engine.bart import LanguageModel
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.weights import create_backend

BASE = TextConfig(51328, 768, 6, 6, 12, 12, 3072, 3072, max_positions=1024, scale_embedding=False)
LARGE = TextConfig(51328, 1024, 12, 12, 16, 16, 4096, 4096, max_positions=4096, scale_embedding=False)
FLOATS = torch.float32


@pytest.fixture
def model(config) -> LanguageModel:
    return LanguageModel(config).eval().requires_grad_(False)


@pytest.mark.parametrize("prompt_tokens", [30, 43, 100])
def test_rows_and_slots_take_the_documented_memory(model, config, prompt_tokens):
    """All of each; a slot never has more positions than the encoder."""
    config = replace(config, prompt_tokens=prompt_tokens)
    backend = CudaBackend(model, config, 4)
    cache, memory = backend.cache, backend.cache_bytes
    assert memory == cache_bytes(config, FLOATS)
    assert cache.self_keys.nbytes + cache.self_values.nbytes == 4 * memory.row
    assert cache.cross_keys.nbytes + cache.cross_values.nbytes == 4 * memory.slot
    assert memory.row * min(5 + prompt_tokens, 48) == memory.slot * 48


@pytest.mark.parametrize(("text", "row", "slot", "rows"), [(BASE, 18, 18, 24), (LARGE, 192, 48, 24)])
def test_published_models_keep_all_rows_within_the_default_budget(config, text, row, slot, rows):
    """In MiB, bfloat16. A slot of large has 1024 positions and not the decoder's 4096."""
    config = replace(config, text=text, image=replace(config.image, tokens=577))
    assert (config.max_prompt_tokens, config.encoder_positions) == (447, 1024)
    memory = cache_bytes(config, torch.bfloat16)
    assert memory == (row * 2**20, slot * 2**20)
    assert min(24, 8192 * 2**20 // sum(memory)) == rows


@pytest.mark.parametrize(("budget", "rows"), [(99.5, 24), (13.2, 13), (0.1, 1)])
def test_rows_are_chosen_from_a_budget(model, config, budget, rows):
    """The number that fits, never more than requested, never none. The budget is in rows of this model."""
    memory_bytes = int(budget * sum(cache_bytes(config, FLOATS)))
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
    [("cuda", ("numba", "llvmlite", "florence2.engine.cpu")), ("cpu", ("florence2.engine.cuda", "torch._dynamo"))],
)
def test_a_backend_imports_only_what_it_needs(backend, blocked):
    """A GPU decodes without numba and llvmlite, and no backend needs the other.

    Nor does loading on a CPU need torch's compiler, which takes 2 s and 73 MB to import.
    """
    program = f"""
import sys
import torch
sys.modules.update(dict.fromkeys({blocked!r}))
from tests.tiny_model import tiny_config
from florence2.engine.bart import LanguageModel
from florence2.engine.engine import Engine
from florence2.engine.{backend}.backend import {backend.title()}Backend
config = tiny_config()
with torch.device("meta" if "{backend}" == "cpu" else "cpu"):  # as `build_language_model` does
    LanguageModel(config)
Engine({backend.title()}Backend(LanguageModel(config).requires_grad_(False), config, 2), config)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
