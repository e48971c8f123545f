"""A small language model with random weights, and its config, for tests that need no reference."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from florence2.config import ModelConfig
from florence2.engine.bart import LanguageModel
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.engine.worker import Worker
from tests.tiny_model import tiny_config


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return tiny_config()


@pytest.fixture(scope="session")
def make_engine(config: ModelConfig):
    """make_engine(rows=…, backend=…, prefill_seconds=…): an engine with the same random weights each time."""

    def make(*, rows: int = 6, backend: type = CpuBackend, **options) -> Engine:
        torch.manual_seed(0)
        model = LanguageModel(config).eval().requires_grad_(False)
        return Engine(backend(model, config, rows), config, **options)

    return make


@pytest.fixture
def engine(make_engine) -> Engine:
    return make_engine(max_waiting=4)


@pytest.fixture(scope="session")
def make_request(config: ModelConfig):
    """make_request(seed, num_beams=…, max_new_tokens=…): a request that differs by its seed."""

    def make(seed: int = 0, /, **options) -> Request:
        random = np.random.default_rng(seed)
        features = random.standard_normal((config.image.tokens, config.text.d_model)).astype(np.float32)
        prompt = [0, *random.integers(3, config.tokens.known, 1 + seed % 7).tolist(), 2]
        return Request(features, prompt, config.generation_options(**options))

    return make


@pytest.fixture
def worker(engine: Engine) -> Iterator[Worker]:
    worker = Worker(engine)
    yield worker
    worker.stop()
