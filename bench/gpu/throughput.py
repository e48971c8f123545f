"""Captions of 20 and detections of 100 tokens, 3 beams: the engine against transformers' generate in static batches.

Base geometry and random weights; only the language model, its encoder included.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.decode import random_weights
from bench.gpu.harness import (
    Report,
    arguments,
    engine_of,
    geometry,
    memory_mib,
    random_request,
    reference_answers,
    sync,
)
from bench.throughput import reference_model

LOADS = {"captions": 20, "detections": 100}  # new tokens
BEAMS, REQUESTS = 3, 64
BATCHES = (1, 8, 16, 32)


def rate(call: Callable[[], object], count: int, device: str) -> float:
    """Return requests per second."""
    sync(device)
    started = time.perf_counter()
    call()
    sync(device)
    return round(count / (time.perf_counter() - started), 2)


def engines(report: Report, weights: dict[str, Tensor], loads: dict[str, int], count: int) -> None:
    options, config = report.options, geometry(report.options)
    for rows, prefill_seconds in ((24, 0.05), (24, 1e9), (96, 1e9), (192, 1e9)):
        engine = engine_of(weights, config, options, rows=rows, prefill_seconds=prefill_seconds)
        rates = {}
        for load, tokens in loads.items():
            requests = [random_request(config, seed, num_beams=BEAMS, max_new_tokens=tokens) for seed in range(count)]
            first = rate(lambda requests=requests, engine=engine: engine.generate(requests), count, options.device)
            again = rate(lambda requests=requests, engine=engine: engine.generate(requests), count, options.device)
            rates[load] = {"with captures": first, "again": again}
        report(f"engine_{rows}_rows_{prefill_seconds:g}_s_prefill", rates)
        if report.late:
            return


def transformers(report: Report, weights: dict[str, Tensor], loads: dict[str, int], count: int) -> None:
    options, config = report.options, geometry(report.options)
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    model = reference_model(config, weights).to(options.device, dtype)
    for batch in (1, 2) if options.small else BATCHES:
        rates = {}
        for load, tokens in loads.items():
            if report.late:
                return
            few = min(count, 4 if batch == 1 else count)  # with a batch of one each request takes as long as the next
            requests = [random_request(config, seed, num_beams=BEAMS, max_new_tokens=tokens) for seed in range(few)]

            def run(requests=requests, batch=batch) -> None:  # type: ignore[no-untyped-def]
                for start in range(0, len(requests), batch):
                    reference_answers(model, config, requests[start : start + batch])

            rates[load] = rate(run, few, options.device)
        report(f"transformers_batch_{batch}", rates)


def main() -> None:
    options = arguments(__doc__)
    report, weights = Report(options, "throughput"), random_weights(geometry(options))
    loads, count = ({"captions": 6, "detections": 10}, 6) if options.small else (LOADS, REQUESTS)
    for part in (engines, transformers):
        with report.part(part.__name__):
            part(report, weights, loads, count)
    report("memory_mib", memory_mib(options.device))


if __name__ == "__main__":
    main()
