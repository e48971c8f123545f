"""The time of a step by requests x beams, eager and as a graph; captures, prefill and memory. Random weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.decode import random_weights
from bench.gpu.harness import (
    EagerBackend,
    Report,
    arguments,
    engine_of,
    geometry,
    memory_mib,
    milliseconds,
    put_in_flight,
    random_request,
)
from florence2.engine.bart import Prefill
from florence2.engine.cuda.backend import PREFILL_BATCH, CudaBackend
from florence2.engine.cuda.memory import memory_of_graphs, memory_of_steps
from florence2.engine.cuda.step import PaddedStep
from florence2.engine.engine import Engine

LOADS = ((1, 1), (1, 3), (8, 1), (8, 3), (16, 3), (32, 3), (64, 3))
WARM_UP = 6


class TimedBackend(CudaBackend):
    """Note how long the captures take, and how much of the device's memory."""

    def __init__(self, *arguments: Any) -> None:
        self.captures: dict[str, int] = {}
        self.taken = 0
        super().__init__(*arguments)

    def _capture(self, step: PaddedStep) -> Callable[[], None]:
        torch.cuda.synchronize()
        started, free = time.perf_counter(), torch.cuda.mem_get_info()[0]
        run = super()._capture(step)
        torch.cuda.synchronize()
        shape = ", ".join(f"{size} {name}" for name, size in step.shape._asdict().items())
        self.captures[shape] = round((time.perf_counter() - started) * 1e3)
        self.taken += free - torch.cuda.mem_get_info()[0]
        return run


def step_milliseconds(engine: Engine, requests: int, beams: int, steps: int) -> float:
    """Return the median time of a step with these requests in flight."""
    length = WARM_UP + steps + 2
    put_in_flight(engine, requests, beams, length)
    for _ in range(WARM_UP):
        engine.step()
    taken = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()  # ends by reading its results, so nothing is left running
        taken.append(time.perf_counter() - started)
    while not engine.scheduler.idle:
        engine.step()
    return round(statistics.median(taken) * 1e3, 3)


def table(report: Report, weights: dict[str, Tensor]) -> None:
    options = report.options
    config, cuda = geometry(options), options.device == "cuda"
    for precision in ("float16", "bfloat16", "float32") if cuda else ("float32",):
        for requests, beams in LOADS[:4] if options.small or precision != "float16" else LOADS:
            if report.late:
                return
            cells = {}
            for name, backend in (("eager", EagerBackend), ("graph", CudaBackend)):
                rows = max(24, requests * beams)
                engine = engine_of(weights, config, options, precision=precision, rows=rows, backend=backend)
                cells[name] = step_milliseconds(engine, requests, beams, 6 if options.small else 30)
                del engine
            report(f"step_ms_{precision}_{requests}x{beams}", cells)


def captures(report: Report, weights: dict[str, Tensor]) -> None:
    if report.options.device != "cuda":
        return
    config, before = geometry(report.options), memory_mib("cuda")
    engine = engine_of(weights, config, report.options, backend=TimedBackend)
    for requests, beams, tokens in ((1, 1, 5), (1, 3, 5), (2, 3, 5), (4, 3, 5), (8, 3, 70)):
        options = {"num_beams": beams, "max_new_tokens": tokens}
        engine.generate([random_request(config, seed, **options) for seed in range(requests)])
    assert isinstance(engine.backend, TimedBackend)
    report("capture_ms", engine.backend.captures)
    report("memory_mib", {"before": before, "after": memory_mib("cuda")})
    graphs, rows = len(engine.backend.captures), engine.backend.rows
    estimated = memory_of_steps(config, rows, torch.float16) + memory_of_graphs(config, graphs)
    report("steps_and_graphs_mib", {"taken": engine.backend.taken // 2**20, "estimated": estimated // 2**20})


@torch.inference_mode()
def prefill(report: Report, weights: dict[str, Tensor]) -> None:
    config, device = geometry(report.options), report.options.device
    engine, cells = engine_of(weights, config, report.options, rows=PREFILL_BATCH), {}
    requests = [random_request(config, seed) for seed in range(PREFILL_BATCH)]
    for count in (1, 2) if report.options.small else (1, 2, 4, 8, 16, 32):
        batch = [Prefill(each.image_features, each.prompt_ids, slot) for slot, each in enumerate(requests[:count])]
        taken = milliseconds(lambda batch=batch: list(engine.backend.prefill(batch)), device, 10)  # type: ignore[misc]
        cells[count] = round(taken / count, 3)
    report("prefill_ms_per_request_by_batch", cells)


def main() -> None:
    options = arguments(__doc__)
    report, weights = Report(options, "steps"), random_weights(geometry(options))
    for part in (captures, table, prefill):
        with report.part(part.__name__):
            part(report, weights)


if __name__ == "__main__":
    main()
