"""Graphs of steps: captured when the engine loads, replayed with the same result, and safe from what else happens."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from bench.decode import random_weights
from bench.gpu.exactness import captures_next_to_a_thread, in_waves
from bench.gpu.harness import EagerBackend, engine_of, geometry, graphs_of, random_request
from florence2.engine.cuda.backend import HIGH_PRIORITY, CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.weights import build_language_model
from florence2_export.language import language_tensors


@pytest.fixture(scope="module")
def weights(options):
    return random_weights(geometry(options))


@pytest.fixture(scope="module")
def requests(options):
    """More beams and positions than one shape holds, so that steps change shapes."""
    beams = (1, 3, 3, 1, 5, 3, 2, 3, 1, 3)
    return [random_request(geometry(options), seed, num_beams=count, max_new_tokens=80 - seed)
            for seed, count in enumerate(beams)]  # fmt: skip


def answers(engine, requests):
    return [answer.tokens for answer in in_waves(engine, requests)]


def test_graphs_give_what_eager_steps_give(weights, requests, options):
    """Token for token, over many changes of shape."""
    engines = [engine_of(weights, geometry(options), options, backend=kind) for kind in (EagerBackend, CudaBackend)]
    eager, graphs = (answers(engine, requests) for engine in engines)
    assert eager == graphs


def test_usual_shapes_are_captured_before_the_first_request(cuda, weights, options):
    """Captions capture nothing new, and every step is a replay."""
    config = geometry(options)
    engine = engine_of(weights, config, options)
    ready = graphs_of(engine.backend)
    assert ready["captured"] > 1 and ready["without"] == 0
    for count in (1, 8):
        engine.generate([random_request(config, seed, num_beams=3, max_new_tokens=20) for seed in range(count)])
    assert graphs_of(engine.backend) == ready


def test_steps_run_on_a_stream_of_high_priority(cuda, weights, options):
    backend = engine_of(weights, geometry(options), options).backend
    assert backend._stream.priority == HIGH_PRIORITY and torch.cuda.current_stream() != backend._stream


def test_a_capture_that_fails_leaves_an_eager_step(cuda, weights, requests, options, monkeypatch):
    """The thread is on its own stream again, and the answers are the same."""
    expected = answers(engine_of(weights, geometry(options), options, backend=EagerBackend), requests)

    @contextlib.contextmanager
    def fail(*_arguments, **_options):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(torch.cuda, "graph", fail)
    own = torch.cuda.current_stream()
    engine = engine_of(weights, geometry(options), options)
    assert graphs_of(engine.backend)["captured"] == 0 and torch.cuda.current_stream() == own
    assert answers(engine, requests) == expected


def test_another_threads_calls_break_no_capture(cuda, options):
    """In CUDA's default mode an allocation in another thread would."""
    found = {}
    captures_next_to_a_thread(lambda _name, values: found.update(values), options)
    assert found["graphs"]["without"] == 0 and found["errors_of_the_thread"] == []


def test_a_second_gpu_gives_the_same_answers(cuda, weights, requests, options):
    """Each thread begins with device 0, where a capture for another device would be worthless."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one GPU")
    config = geometry(options)
    tensors = {name: tensor.to("cuda:1") for name, tensor in language_tensors(weights, "float16").items()}
    second = Engine(CudaBackend(build_language_model(tensors, config, "float16"), config, 24), config)
    assert graphs_of(second.backend)["without"] == 0
    found = []
    thread = threading.Thread(target=lambda: found.append(answers(second, requests)))
    thread.start()
    thread.join()
    assert found == [answers(engine_of(weights, config, options), requests)]
