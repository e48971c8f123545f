"""The padded step, which a GPU captures as a graph: what a capture forbids, and its buckets."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from florence2.config import TextConfig
from florence2.engine.bart import LanguageModel, Prefill
from florence2.engine.cuda import backend as cuda_backend
from florence2.engine.cuda.backend import CudaBackend, _bucket
from florence2.engine.cuda.memory import memory_of_prefill, memory_of_steps
from florence2.engine.cuda.step import Shape
from florence2.engine.weights import rows_within
from tests.tiny_model import tiny_config
from tests.unit.engine.inputs import Span, step_input
from tests.unit.engine.test_attention import AnyToken


@pytest.fixture
def backend(config) -> CudaBackend:
    model = LanguageModel(config).eval().requires_grad_(False)
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return CudaBackend(model, config, 8)


SPANS = [Span(range(1), 0, 2, 9), Span(range(1, 4), 1, 3, 7, moves=[(2, 1)], kept=1)]
STEP = step_input([AnyToken([5]), AnyToken([6, 7, 8])], SPANS)


@torch.inference_mode()
def test_nothing_in_a_step_reads_from_the_device(backend):
    """A capture fails on it. Fake tensors have no numbers to read either."""
    step = backend.filled_step(STEP)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step.choose(backend.decoder.decode(step))
        with pytest.raises(DataDependentOutputException):
            bool(backend.decoder.decode(step).isfinite().all())


@torch.inference_mode()
def test_a_step_can_be_repeated_without_moves(backend):
    """A capture runs it more than once; with moves, beams would move more than once."""
    step = backend.filled_step(STEP)
    backend.cache.self_keys.normal_()
    for _ in range(2):
        step.inputs.upload()
        step.inputs.device["parents"].copy_(torch.arange(8))
        step.choose(backend.decoder.decode(step))
    moved = backend.cache.self_keys[:, 2, :, :3].clone()
    step.inputs.upload()
    step.choose(backend.decoder.decode(step))
    assert torch.equal(backend.cache.self_keys[:, 1, :, :3], moved)
    assert torch.equal(backend.cache.self_keys[:, 2, :, :3], moved)


@torch.inference_mode()
def test_beams_that_swap_rows_keep_what_each_has_decoded(backend):
    backend.cache.self_values.normal_()
    before = backend.cache.self_values.clone()
    backend.step(step_input([AnyToken([5, 6, 7])], [Span(range(3), 0, 5, 9, moves=[(0, 1), (1, 0)])]))
    after = backend.cache.self_values
    assert torch.equal(after[:, [0, 1], :, :5], before[:, [1, 0], :, :5])
    assert torch.equal(after[:, 2, :, :5], before[:, 2, :, :5])
    assert torch.equal(after[:, 3:, :, 1:], before[:, 3:, :, 1:])  # rows that no request has are written at position 0


def allocated(call: Callable[[], object]) -> int:
    """Return the most bytes that torch has allocated during a call for what the call makes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes))


# A model whose logits, like base's, are many more numbers than what is between its layers.
WIDE = replace(
    tiny_config(),
    text=TextConfig(8000, 64, 2, 2, 4, 4, 256, 256, max_positions=1024, scale_embedding=False),
    tokens=replace(tiny_config().tokens, known=7990),
    prompt_tokens=250,
)


@pytest.fixture
def wide() -> CudaBackend:
    return CudaBackend(LanguageModel(WIDE).eval().requires_grad_(False), WIDE, 16)


@torch.inference_mode()
@pytest.mark.parametrize(("beams", "length", "samples"), [(1, 64, False), (4, 64, True), (4, 1024, False)])
def test_a_step_stays_within_the_memory_that_the_budget_counts(wide, beams, length, samples):
    """Nor does the budget count many times more than a step takes."""
    step = wide._step_of(Shape(16, 16, beams, length, 255, 16, samples))
    step.inputs.upload()
    used = allocated(lambda: step.choose(wide.decoder.decode(step)))
    counted = memory_of_steps(WIDE, 16, torch.float32)
    assert counted / 6 < used < counted


@torch.inference_mode()
@pytest.mark.parametrize("requests", [1, 6])
def test_prefill_stays_within_the_memory_that_the_budget_counts(wide, requests):
    """For requests with the longest prompt."""
    features = np.zeros((WIDE.image.tokens, 64), np.float32)
    batch = [Prefill(features, [5] * (250 - slot), slot) for slot in range(requests)]
    used = allocated(lambda: list(wide.prefill(batch)))
    counted = memory_of_prefill(WIDE, requests, torch.float32)
    assert counted / 2 < used < counted


LARGE = TextConfig(51328, 1024, 12, 12, 16, 16, 4096, 4096, max_positions=4096, scale_embedding=False)
BASE = replace(LARGE, d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn=3072, max_positions=1024)


@pytest.mark.parametrize(
    ("text", "dtype", "mib", "rows"),
    [(BASE, torch.float16, 8192, 96), (BASE, torch.float32, 8192, 77), (BASE, torch.float16, 1, 1),
     (LARGE, torch.float16, 8192, 26), (LARGE, torch.float16, 40_000, 96), (LARGE, torch.float32, 8192, 13)],
)  # fmt: skip
def test_a_budget_holds_keys_values_and_what_computes_them(config, text, dtype, mib, rows):
    """The rows that docs/gpu.md promises. One more would take more than the budget."""
    config = replace(config, text=text, image=replace(config.image, tokens=577))
    model = SimpleNamespace(dtype=dtype)
    assert rows_within(mib * 2**20, CudaBackend, model, config, 96) == rows
    if 1 < rows < 96:
        needs = [CudaBackend.memory_bytes(model, config, count) for count in (rows, rows + 1)]
        assert needs[0] <= mib * 2**20 < needs[1]


def test_the_graph_that_was_not_used_for_longest_makes_room(make_engine, make_request, monkeypatch):
    """There are never more than the budget counts, and the answers stay the same."""
    requests = [make_request(seed, num_beams=1 + seed % 5, max_new_tokens=9 + seed) for seed in range(9)]
    expected = make_engine(rows=32, backend=CudaBackend).generate(requests)
    monkeypatch.setattr(cuda_backend, "GRAPHS", 2)
    engine = make_engine(rows=32, backend=CudaBackend)
    for request, answer in zip(requests, expected, strict=True):
        assert engine.generate([request])[0].tokens == answer.tokens
        assert len(engine.backend._runs) == len(engine.backend._steps) <= 2
    for request, beams in ((requests[1], [4, 2]), (requests[0], [2, 1])):  # the first needs no new graph
        engine.generate([request])
        assert [step.shape.beams for step in engine.backend._runs] == beams


@pytest.mark.parametrize(
    ("count", "limit", "least", "size"),
    [(1, 300, 64, 64), (64, 300, 64, 64), (65, 300, 64, 128), (257, 300, 64, 300), (0, 24, 8, 8), (3, 24, 1, 4)],
)
def test_buckets_are_powers_of_two_within_the_limit(count, limit, least, size):
    """The limit itself is the largest bucket."""
    assert _bucket(count, limit, least) == size


@torch.inference_mode()
def test_a_step_runs_on_the_backends_stream_and_waits_for_prefill(backend, monkeypatch):
    """Prefill writes keys and values on the thread's own stream."""
    events = []

    class Stream:
        def wait_stream(self, other):
            events.append(f"waits for {other}")

    @contextlib.contextmanager
    def current(what):
        events.append(f"on {type(what).__name__}")
        yield
        events.append(f"off {type(what).__name__}")

    backend._stream = Stream()
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the thread's own")
    monkeypatch.setattr(backend, "_capture", lambda step: lambda: events.append("runs"))
    backend.step(STEP)
    assert events == ["on device", "waits for the thread's own", "on Stream", "runs", "off Stream", "off device"]
