"""Compare the engine with many requests in flight with transformers' `generate` one by one, and measure token gaps.

`python -m bench.throughput` uses base geometry, random weights, 3 beams, and the same prompts and image features for
both. It measures only the language model: its encoder (prefill) and its decoding, together and separately.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration

from bench.decode import BASE, PRECISIONS, bart_config, random_weights, request
from florence2.config import ModelConfig
from florence2.engine.engine import Engine
from florence2.engine.weights import build_language_model, create_backend
from florence2_export.language import language_tensors
from florence2_export.reference import reference_tokens

IN_FLIGHT, BEAMS = 8, 3
TOKENS = 48
ONE_BY_ONE = 2  # of the same requests; each takes as long as the next
LATE_REQUESTS, LATE_EVERY = 6, 15  # tokens of the first request


def reference_model(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Florence2ForConditionalGeneration:
    """Return transformers' Florence-2 with these weights and a vision encoder that is never used."""
    text = config.text
    architecture = Florence2Config(
        text_config=bart_config(text),
        vision_config=dict(depths=[1], embed_dim=[32], num_heads=[1], num_groups=[1], patch_size=[7], patch_stride=[4],
                           patch_padding=[3], patch_prenorm=[False], projection_dim=text.d_model),
    )  # fmt: skip
    model: Florence2ForConditionalGeneration = Florence2ForConditionalGeneration(architecture)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model.eval()


def engine_of(weights: dict[str, torch.Tensor], precision: str, **options: float) -> Engine:
    backend = create_backend(build_language_model(language_tensors(weights, precision), BASE, precision), BASE)
    return Engine(backend, BASE, **options)


def transformers_rate(weights: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return tokens per second, with and without the encoder's time."""
    model = reference_model(BASE, weights)
    seconds, tokens = dict.fromkeys((1, TOKENS), 0.0), 0
    for seed in range(ONE_BY_ONE):
        for limit in seconds:  # one token is the encoder's time and one step
            asked = request(BASE, seed, num_beams=BEAMS, max_new_tokens=limit)
            features = torch.from_numpy(asked.image_features)
            started = time.perf_counter()
            answer = reference_tokens(model, BASE, features, asked.prompt_ids, asked.options)
            seconds[limit] += time.perf_counter() - started
        tokens += len(answer)
    return tokens / seconds[TOKENS], (tokens - ONE_BY_ONE) / (seconds[TOKENS] - seconds[1])


def engine_rate(engine: Engine) -> tuple[float, float]:
    """Return the same for the engine with all requests in flight."""
    engine.generate([request(BASE, 99, max_new_tokens=4)])
    asked = [request(BASE, seed, num_beams=BEAMS, max_new_tokens=TOKENS) for seed in range(IN_FLIGHT)]
    engine.prefill_seconds = 1e9  # all together first, so that the two parts can be told apart
    started = time.perf_counter()
    sequences = [engine.add(one) for one in asked]
    engine.step()
    first = time.perf_counter()
    while not engine.scheduler.idle:
        engine.step()
    ended = time.perf_counter()
    tokens = sum(len(sequence.outcome.tokens) for sequence in sequences)  # type: ignore[union-attr]
    return tokens / (ended - started), (tokens - IN_FLIGHT) / (ended - first)


def token_gaps(engine: Engine, prefill_seconds: float) -> list[float]:
    """Return the seconds between the tokens of a long request while others arrive."""
    engine.prefill_seconds = prefill_seconds
    long = engine.add(request(BASE, 1, num_beams=BEAMS, max_new_tokens=LATE_EVERY * (LATE_REQUESTS + 2)))
    gaps, late, last = list[float](), 0, None
    while not long.done:
        length = long.search.length
        if late < LATE_REQUESTS and length == LATE_EVERY * (late + 1):
            late += 1
            engine.add(request(BASE, 1 + late, num_beams=BEAMS, max_new_tokens=LATE_EVERY))
        engine.step()
        now = time.perf_counter()
        if last is not None and length > 1:
            gaps.append(now - last)
        last = now
    while not engine.scheduler.idle:
        engine.step()
    return gaps


def milliseconds(gaps: Sequence[float]) -> str:
    return " | ".join(f"{value * 1e3:.0f}" for value in (*np.percentile(gaps, (50, 90, 99)), max(gaps)))


def report(precisions: Sequence[str]) -> Iterator[str]:
    weights = random_weights(BASE)
    theirs, their_decoding = transformers_rate(weights)
    yield f"{IN_FLIGHT} requests of {BEAMS} beams and {TOKENS} tokens, tokens per second:\n"
    yield "| | with prefill | | decoding only | |"
    yield "|---|---|---|---|---|"
    yield f"| transformers float32, one by one | {theirs:.1f} | 1.0x | {their_decoding:.1f} | 1.0x |"
    for precision in precisions:
        ours, our_decoding = engine_rate(engine_of(weights, precision))
        ratios = f"{ours:.1f} | {ours / theirs:.1f}x | {our_decoding:.1f} | {our_decoding / their_decoding:.1f}x"
        yield f"| engine {precision} | {ratios} |"
    yield f"\nMilliseconds between the tokens of a request of {BEAMS} beams while {LATE_REQUESTS} others arrive:\n"
    yield "| | median | 90 % | 99 % | longest |"
    yield "|---|---|---|---|---|"
    for precision in precisions:
        engine = engine_of(weights, precision)
        yield f"| {precision}, prefill in pieces, 50 ms | {milliseconds(token_gaps(engine, 0.05))} |"
        yield f"| {precision}, prefill at once | {milliseconds(token_gaps(engine, 1e9))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32", "int8"])
    for line in report(parser.parse_args().precisions):
        print(line, flush=True)


if __name__ == "__main__":
    main()
