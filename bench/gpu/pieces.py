"""Where the time of a step goes: its pieces by the host's clock, its kernels, and single operators. Random weights."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bench.decode import random_weights
from bench.gpu.harness import EagerBackend, Report, arguments, engine_of, geometry, milliseconds, put_in_flight, sync
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.cuda.step import Inputs, PaddedStep, top_of_rows
from florence2.engine.sequence import Sequence

REQUESTS, BEAMS, STEPS = 8, 3, 30
# Each is a method that a step calls; what is left is the engine's own bookkeeping.
PIECES: dict[str, tuple[type, str]] = {
    "fill": (PaddedStep, "fill"),
    "upload": (Inputs, "upload"),
    "candidates": (PaddedStep, "candidates"),
    "advance": (Sequence, "advance"),
}
REPEAT = 20  # operators in a graph, so that launching them does not count


@contextlib.contextmanager
def stopwatch(backend: CudaBackend, device: str) -> Iterator[dict[str, float]]:
    """Collect the seconds of each piece. The device is waited for after each, so they add up to more than a step."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            sync(device)
            started = time.perf_counter()
            result = call(*arguments)
            sync(device)
            spent[name] += time.perf_counter() - started
            return result

        return run

    with contextlib.ExitStack() as patches:
        for name, (owner, method) in PIECES.items():
            patches.enter_context(mock.patch.object(owner, method, timed(name, getattr(owner, method))))
        replays = {step: timed("replay", run) for step, run in backend._runs.items()}
        patches.enter_context(mock.patch.object(backend, "_runs", replays))
        yield spent


def pieces(report: Report, weights: dict[str, Tensor]) -> None:
    device, steps = report.options.device, 8 if report.options.small else STEPS
    engine = engine_of(weights, geometry(report.options), report.options)
    put_in_flight(engine, REQUESTS, BEAMS, steps + 12)
    for _ in range(6):
        engine.step()
    assert isinstance(engine.backend, CudaBackend)
    with stopwatch(engine.backend, device) as spent:
        started = time.perf_counter()
        for _ in range(steps):
            engine.step()
        spent["whole"] = time.perf_counter() - started
    spent["bookkeeping"] = spent["whole"] - sum(seconds for name, seconds in spent.items() if name != "whole")
    report("pieces_ms", {name: round(seconds / steps * 1e3, 3) for name, seconds in spent.items()})


def kernels(report: Report, weights: dict[str, Tensor]) -> None:
    """List the kernels of an eager step with the device's own time."""
    cuda, steps = report.options.device == "cuda", 4
    engine = engine_of(weights, geometry(report.options), report.options, backend=EagerBackend)
    put_in_flight(engine, REQUESTS, BEAMS, 20)
    engine.step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            engine.step()
        sync(report.options.device)
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if not cuda or event.device_type.name == "CUDA"]
    events.sort(key=lambda event: -getattr(event, spent))
    longest = [[event.key[:60], event.count // steps, round(getattr(event, spent) / steps)] for event in events[:12]]
    count, taken = (sum(getattr(event, name) for event in events) / steps for name in ("count", spent))
    report("kernels", {"per_step": round(count), "us_per_step": round(taken), "longest": longest})


@torch.inference_mode()
def operators(report: Report, weights: dict[str, Tensor]) -> None:
    """Time cross-attention, whose beams share keys and values against gathered ones, and what chooses tokens."""
    device, text = report.options.device, geometry(report.options).text
    dtype = torch.float16 if device == "cuda" else torch.float32
    heads, size, positions = text.decoder_heads, text.d_model // text.decoder_heads, 640
    for requests in (8,) if report.options.small else (8, 32):
        rows = requests * BEAMS
        keys, values = torch.randn(2, requests, heads, positions, size, device=device, dtype=dtype)
        queries, x = (
            torch.randn(rows, *shape, device=device, dtype=dtype) for shape in ((heads, 1, size), (text.d_model,))
        )
        grouped = queries.view(requests, BEAMS, heads, size).transpose(1, 2)
        slots = torch.arange(requests, device=device).repeat_interleave(BEAMS)
        head = torch.randn(text.vocab_size, text.d_model, device=device, dtype=dtype)
        logits = torch.randn(rows, text.vocab_size, device=device)
        calls: dict[str, Callable[[], object]] = {
            "attention, grouped": lambda q=grouped, k=keys, v=values: F.scaled_dot_product_attention(q, k, v),
            "attention, gathered": lambda q=queries, k=keys, v=values, s=slots: F.scaled_dot_product_attention(
                q, k[s], v[s]
            ),
            "head": lambda x=x, head=head: F.linear(x, head).float(),
            "log-softmax": lambda logits=logits: logits.log_softmax(-1),
            "top-k": lambda logits=logits: logits.topk(2 * BEAMS),
            "top-k in two stages": lambda logits=logits: top_of_rows(logits, 2 * BEAMS),
        }
        cells = {}
        for name, call in calls.items():
            repeated = captured(call) if device == "cuda" else call
            cells[name] = round(milliseconds(repeated, device, 10) * 1e3 / (REPEAT if device == "cuda" else 1), 1)
        report(f"operators_us_{requests}x{BEAMS}", cells)


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Return a replay of REPEAT calls."""
    call()
    sync("cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEAT):
            call()
    return graph.replay


def main() -> None:
    options = arguments(__doc__)
    report, weights = Report(options, "pieces"), random_weights(geometry(options))
    for part in (pieces, kernels, operators):
        with report.part(part.__name__):
            part(report, weights)


if __name__ == "__main__":
    main()
