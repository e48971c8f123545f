"""The padded step, which a GPU captures as a graph: what a capture forbids, and its buckets."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from florence2.engine.backend import Span
from florence2.engine.bart import LanguageModel
from florence2.engine.cuda.backend import CudaBackend, _bucket
from tests.unit.engine.test_attention import AnyToken


@pytest.fixture
def backend(config) -> CudaBackend:
    model = LanguageModel(config).eval().requires_grad_(False)
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return CudaBackend(model, config, 8)


SPANS = [Span(range(1), 0, 2, 9), Span(range(1, 4), 1, 3, 7, moves=[(2, 1)], kept=1)]
SEARCHES = [AnyToken([5]), AnyToken([6, 7, 8])]


@torch.inference_mode()
def test_nothing_in_a_step_reads_from_the_device(backend):
    """A capture fails on it. Fake tensors have no numbers to read either."""
    step = backend.filled_step(SEARCHES, SPANS)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step.choose(backend.decoder.decode(step))
        with pytest.raises(DataDependentOutputException):
            bool(backend.decoder.decode(step).isfinite().all())


@torch.inference_mode()
def test_a_step_can_be_repeated_without_moves(backend):
    """A capture runs it more than once; with moves, beams would move more than once."""
    step = backend.filled_step(SEARCHES, SPANS)
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
    backend.step([AnyToken([5, 6, 7])], [Span(range(3), 0, 5, 9, moves=[(0, 1), (1, 0)])])
    after = backend.cache.self_values
    assert torch.equal(after[:, [0, 1], :, :5], before[:, [1, 0], :, :5])
    assert torch.equal(after[:, 2, :, :5], before[:, 2, :, :5])
    assert torch.equal(after[:, 3:, :, 1:], before[:, 3:, :, 1:])  # rows that no request has are written at position 0


@pytest.mark.parametrize(
    ("count", "limit", "least", "size"),
    [(1, 300, 64, 64), (64, 300, 64, 64), (65, 300, 64, 128), (257, 300, 64, 300), (0, 24, 8, 8), (3, 24, 1, 4)],
)
def test_buckets(count, limit, least, size):
    """Powers of two, and never more than there are."""
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
    backend.step(SEARCHES, SPANS)
    assert events == ["on device", "waits for the thread's own", "on Stream", "runs", "off Stream", "off device"]
