"""Measure a decode step of the engine against its lower bounds: reading the weights once and, for 24 rows, multiplying.

`python -m bench.decode` uses base geometry with random weights, since speed does not depend on them. All figures of a
table come from one run on one machine; compare ratios, not milliseconds. The thread settings are the server's.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from florence2.config import GenerationDefaults, ImageConfig, ModelConfig, TextConfig, TokenConfig
from florence2.engine.bart import LanguageModel
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.engine.weights import build_language_model, create_backend
from florence2_export.language import language_tensors

BASE = ModelConfig(
    image=ImageConfig(768, 768, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3, tokens=24 * 24 + 1),
    text=TextConfig(51328, 768, 6, 6, 12, 12, 3072, 3072, max_positions=1024, scale_embedding=False),
    tokens=TokenConfig(bos=0, pad=1, eos=2, decoder_start=2, first_location=50269, known=51289),
    generation=GenerationDefaults(forced_bos=0, forced_eos=2),
    banned_phrases=(),
    source="random weights, base geometry",
)
PRECISIONS = ("float32", "bfloat16", "int8", "int4")
LOADS = ((1, 1), (1, 3), (8, 1), (8, 3))  # requests in flight and beams
PROMPT_TOKENS = 15
WARM_UP, STEPS = 8, 24


def bart_config(text: TextConfig) -> dict[str, Any]:
    """Return the sizes as transformers' `text_config`."""
    return dict(
        model_type="bart",
        vocab_size=text.vocab_size,
        d_model=text.d_model,
        encoder_layers=text.encoder_layers,
        decoder_layers=text.decoder_layers,
        encoder_attention_heads=text.encoder_heads,
        decoder_attention_heads=text.decoder_heads,
        encoder_ffn_dim=text.encoder_ffn,
        decoder_ffn_dim=text.decoder_ffn,
        max_position_embeddings=text.max_positions,
        scale_embedding=text.scale_embedding,
    )


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Return float32 weights, named as in a native checkpoint."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LanguageModel(config).state_dict().items()}
    random = torch.Generator().manual_seed(0)
    return {
        f"model.language_model.{name}": torch.ones(shape)
        if "norm" in name and name.endswith("weight")
        else torch.randn(shape, generator=random) * 0.02
        for name, shape in shapes.items()
    }


def request(config: ModelConfig, seed: int, **options: int) -> Request:
    random = np.random.default_rng(seed)
    features = random.standard_normal((config.image.tokens, config.text.d_model), dtype=np.float32)
    prompt = [0, *random.integers(4, 50000, PROMPT_TOKENS - 2).tolist(), 2]
    return Request(features, prompt, config.generation_options(**options))


def decoder_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Return the bytes of weights that a step reads: the decoder's layers and the head."""
    head = "lm_head.weight" if "lm_head.weight" in tensors else "shared.weight"
    prefill_only = ("encoder_attn.k_proj", "encoder_attn.v_proj", "embed_positions")
    read = [
        tensor
        for name, tensor in tensors.items()
        if name == head or (name.startswith("decoder.") and not any(part in name for part in prefill_only))
    ]
    return sum(tensor.nbytes for tensor in read)


def read_seconds(size: int) -> float:
    """Return the time to stream `size` bytes from memory with the same threads, the best of several."""
    block = torch.zeros(max(size, 256 * 2**20) // 8, dtype=torch.int64)
    return min(_seconds(block.max) for _ in range(7)) * size / block.nbytes


def multiply_seconds(parameters: int, rows: int, precision: str) -> float:
    """Return the time at the rate of large matrix products with the same threads, the best of several."""
    size = 2048
    if precision in ("int8", "int4"):
        one, other = torch.ones(2, size, size, dtype=torch.int8)
        multiply = functools.partial(torch._int_mm, one, other)
    else:
        one, other = torch.ones(2, size, size, dtype=getattr(torch, precision))
        multiply = functools.partial(torch.mm, one, other)
    return min(_seconds(multiply) for _ in range(7)) * parameters * rows / size**3


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def step_seconds(engine: Engine, requests: int, beams: int) -> float:
    """Return the median of some steps with so many requests in flight."""
    length = WARM_UP + STEPS + 2
    sequences = [
        engine.add(request(engine.config, seed, num_beams=beams, max_new_tokens=length)) for seed in range(requests)
    ]
    while not all(sequence.prefilled for sequence in sequences):
        engine.step()
    for _ in range(WARM_UP):
        engine.step()
    seconds = statistics.median(_seconds(engine.step) for _ in range(STEPS - requests))
    while not engine.scheduler.idle:
        engine.step()
    return seconds


def prefill_seconds(engine: Engine) -> float:
    """Return the time of one request's prefill and its only decode step."""
    return min(_seconds(lambda: engine.generate([request(BASE, 1, max_new_tokens=1, num_beams=1)])) for _ in range(3))


def table(precisions: list[str]) -> Iterator[str]:
    weights = random_weights(BASE)
    parameters = decoder_bytes(language_tensors(weights)) // 4
    yield "| weights | read once | 24 rows multiplied | " + " | ".join(f"{r} x {b}" for r, b in LOADS) + " | prefill |"
    yield "|---|---|---|" + "---|" * (len(LOADS) + 1)
    for precision in precisions:
        tensors = language_tensors(weights, precision)
        backend = create_backend(build_language_model(tensors, BASE, precision), BASE)
        engine = Engine(backend, BASE, prefill_seconds=60)
        size = decoder_bytes(tensors)
        floor = read_seconds(size)
        multiplied = multiply_seconds(parameters, 24, precision)
        cells = []
        for requests, beams in LOADS:
            seconds = step_seconds(engine, requests, beams)
            cells.append(f"{seconds * 1e3:.1f} ms ({seconds / floor:.1f}x)")
        prefill = prefill_seconds(engine)
        floors = f"{floor * 1e3:.1f} ms | {multiplied * 1e3:.1f} ms"
        yield f"| {precision} | {floors} | " + " | ".join(cells) + f" | {prefill * 1e3:.0f} ms |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    for line in table(parser.parse_args().precisions):
        print(line, flush=True)


if __name__ == "__main__":
    main()
