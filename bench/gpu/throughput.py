"""Captions of 20 and detections of 100 tokens, 3 beams: the engine against transformers' generate in static batches.

Then the latency of a single request: a caption, and Roboflow's protocol, which is greedy with exactly 128 tokens. Base
geometry and random weights; only the language model, its encoder included.
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
    milliseconds,
    random_request,
    reference_answers,
    sync,
)
from bench.gpu.table import BOX_TOKENS
from bench.throughput import reference_model

LOADS = {"captions": 20, "detections": 100}  # new tokens
BEAMS, REQUESTS = 3, 64
BATCHES = (1, 8, 16, 32)
TARGETS = {"captions": 3, "detections": 5}  # times transformers' in batches of 32
SINGLE = {"caption": (20, BEAMS), "greedy, exactly 128 tokens": (128, 1)}  # tokens, beams


def rate(call: Callable[[], object], count: int, device: str) -> float:
    """Return requests per second."""
    sync(device)
    started = time.perf_counter()
    call()
    sync(device)
    return round(count / (time.perf_counter() - started), 2)


def compare(report: Report, weights: dict[str, Tensor], loads: dict[str, int], count: int) -> None:
    """Measure both, and report how many times the static batches' throughput the engine reaches."""
    fastest, static = engines(report, weights, loads, count), transformers(report, weights, loads, count)
    for load, tokens in loads.items():
        if load in fastest and load in static:
            cells = {"engine": fastest[load], "transformers": static[load], "target": TARGETS[load]}
            report(f"{load}_per_second", {**cells, "times": round(fastest[load] / static[load], 2)})
            if load == "detections":
                report("boxes_per_second", round(fastest[load] * (tokens // BOX_TOKENS), 1))


def engines(report: Report, weights: dict[str, Tensor], loads: dict[str, int], count: int) -> dict[str, float]:
    """Return the best rate of each load, once all shapes are captured."""
    fastest: dict[str, float] = {}
    options, config = report.options, geometry(report.options)
    for rows, prefill_seconds in ((24, 0.05), (24, 1e9), (96, 1e9), (192, 1e9)):
        engine = engine_of(weights, config, options, rows=rows, prefill_seconds=prefill_seconds)
        rates = {}
        for load, tokens in loads.items():
            requests = [random_request(config, seed, num_beams=BEAMS, max_new_tokens=tokens) for seed in range(count)]
            first = rate(lambda requests=requests, engine=engine: engine.generate(requests), count, options.device)
            again = rate(lambda requests=requests, engine=engine: engine.generate(requests), count, options.device)
            rates[load] = {"with captures": first, "again": again}
            fastest[load] = max(again, fastest.get(load, 0.0))
        report(f"engine_{rows}_rows_{prefill_seconds:g}_s_prefill", rates)
        if report.late:
            break
    return fastest


def transformers(report: Report, weights: dict[str, Tensor], loads: dict[str, int], count: int) -> dict[str, float]:
    """Return the rate of each load in the largest batch."""
    options, config = report.options, geometry(report.options)
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    model = reference_model(config, weights).to(options.device, dtype)
    for batch in (1, 2) if options.small else BATCHES:
        rates: dict[str, float] = {}
        for load, tokens in loads.items():
            if report.late:
                return {}
            few = min(count, 4 if batch == 1 else count)  # with a batch of one each request takes as long as the next
            requests = [random_request(config, seed, num_beams=BEAMS, max_new_tokens=tokens) for seed in range(few)]

            def run(requests=requests, batch=batch) -> None:  # type: ignore[no-untyped-def]
                for start in range(0, len(requests), batch):
                    reference_answers(model, config, requests[start : start + batch])

            rates[load] = rate(run, few, options.device)
        report(f"transformers_batch_{batch}", rates)
    return rates


def single(report: Report, weights: dict[str, Tensor]) -> None:
    """Measure one request at a time, in milliseconds."""
    options, config = report.options, geometry(report.options)
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    engine, model = engine_of(weights, config, options), reference_model(config, weights).to(options.device, dtype)
    for name, (tokens, beams) in SINGLE.items():
        length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        request = random_request(config, 1, num_beams=beams, **({"max_new_tokens": 6} if options.small else length))
        repeat = 2 if options.small else 10
        report(f"single_ms, {name}", {
            "engine": milliseconds(lambda request=request: engine.generate([request]), options.device, repeat),
            "transformers": milliseconds(
                lambda request=request: reference_answers(model, config, [request]), options.device, repeat, 1
            ),
        })  # fmt: skip


def main() -> None:
    options = arguments(__doc__)
    report, weights = Report(options, "throughput"), random_weights(geometry(options))
    loads, count = ({"captions": 6, "detections": 10}, 6) if options.small else (LOADS, REQUESTS)
    with report.part("single"):
        single(report, weights)
    with report.part("compare"):
        compare(report, weights, loads, count)
    report("memory_mib", memory_mib(options.device))


if __name__ == "__main__":
    main()
