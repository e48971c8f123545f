"""Measure the decoder's memory with captions in flight; docs/capacity.md shows it.

    python -m bench.memory --size large --precision int8

Real geometry and random weights, since memory does not depend on them. The keys and values of all rows and slots are
reserved, but a position takes memory only once it is used.
"""

from __future__ import annotations

import argparse
import dataclasses

import psutil
import torch

from bench.decode import BASE, PRECISIONS, random_weights, request
from florence2.config import ModelConfig
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.engine import Engine
from florence2.engine.weights import build_language_model, create_backend
from florence2_export.language import language_tensors

LARGE = dataclasses.replace(
    BASE,
    text=dataclasses.replace(
        BASE.text, d_model=1024, encoder_layers=12, decoder_layers=12, encoder_heads=16, decoder_heads=16,
        encoder_ffn=4096, decoder_ffn=4096, max_positions=4096,
    ),
    source="random weights, large geometry",
)  # fmt: skip
SIZES = {"base": BASE, "large": LARGE}
BUDGET = 8192 * 2**20  # kv_cache_mib


def engine_of(config: ModelConfig, precision: str) -> Engine:
    """Return an engine with the rows that the default budget allows."""
    model = build_language_model(language_tensors(random_weights(config), precision), config, precision)
    return Engine(create_backend(model, config, 24, BUDGET), config)


def resident() -> int:
    return psutil.Process().memory_info().rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    parser.add_argument("--captions", type=int, default=8, help="of 20 tokens, 3 beams")
    options = parser.parse_args()
    config = SIZES[options.size]
    engine = engine_of(config, options.precision)
    assert isinstance(engine.backend, CpuBackend)
    cache, before = engine.backend.cache, resident()
    reserved = sum(tensor.nbytes for tensor in vars(cache).values() if isinstance(tensor, torch.Tensor))
    engine.generate([request(config, seed, num_beams=3, max_new_tokens=20) for seed in range(options.captions)])
    figures = {"loaded": before, "after the captions": resident(), "reserved for keys and values": reserved}
    print(f"{options.size} in {options.precision}: {engine.backend.rows} rows")
    for name, size in figures.items():
        print(f"{name:30} {size / 2**30:6.2f} GiB")


if __name__ == "__main__":
    main()
