"""Measure prefill against its floor, the products of its linear layers, in processor seconds of one request.

    python -m bench.prefill --precisions float32 bfloat16 int8

Base geometry and random weights, since speed does not depend on them. int8 is compared with products of bytes of torch
that read weights packed for them, without rounding the inputs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from bench.decode import BASE, PRECISIONS, random_weights, request
from florence2.engine.bart import Prefill, TextEncoder
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.cpu.cache import PackedCache
from florence2.engine.weights import build_language_model
from florence2_export.language import language_tensors

ROUNDS = 7


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the least of some rounds, of all threads together, which other programs disturb little."""
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def products_seconds(rows: int, precision: str) -> float:
    """Return the time of the linear layers' products for so many rows."""
    d_model, inner, layers = BASE.text.d_model, BASE.text.encoder_ffn, BASE.text.encoder_layers
    shapes = [(d_model, 3 * d_model), (d_model, d_model), (d_model, inner), (inner, d_model), (d_model, 2 * d_model)]
    return layers * sum(processor_seconds(product(rows, *shape, precision)) for shape in shapes)


def product(rows: int, inputs: int, outputs: int, precision: str) -> Callable[[], object]:
    if precision in ("int8", "int4"):
        x = torch.ones(rows, inputs, dtype=torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(torch.ones(outputs, inputs, dtype=torch.int8), [rows, inputs])
        scale, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
        output = (1.0, 0, torch.float32, "none", [], "")
        return lambda: torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, scale, zeros, None, *output)
    dtype = getattr(torch, precision)
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


@torch.inference_mode()
def row(precision: str) -> str:
    model = build_language_model(language_tensors(random_weights(BASE), precision), BASE, precision)
    encoder, cache = TextEncoder(model), PackedCache(BASE, 1, CpuBackend.cache_dtype(model))
    asked = request(BASE, 1)
    inputs = [Prefill(asked.image_features, asked.prompt_ids, slot=0)]
    taken = processor_seconds(lambda: list(encoder.prefill(inputs, cache.write_encoder)))
    floor = products_seconds(BASE.image.tokens + len(asked.prompt_ids), precision)
    return f"| {precision} | {taken * 1e3:.0f} ms | {floor * 1e3:.0f} ms | {taken / floor:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    precisions = parser.parse_args().precisions
    print("| weights | prefill | its products | ratio |\n|---|---|---|---|")
    for precision in precisions:
        print(row(precision), flush=True)


if __name__ == "__main__":
    main()
