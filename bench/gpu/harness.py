"""The harness of all parts: options, reports, clocks, and engines with the CUDA backend on either device."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from bench.decode import BASE
from florence2.config import ModelConfig
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.cuda.step import PaddedStep
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.engine.weights import build_language_model
from florence2_export.language import language_tensors
from florence2_export.reference import generation_config


def arguments(description: str | None) -> argparse.Namespace:
    """Return the options of a part; turns TF32 off."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after that")
    options = parser.parse_args()
    options.end = time.monotonic() + options.seconds
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    return options


class Report:
    """Print a line for each result, and write all results to OUT/NAME.json as they come."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.options = options
        self.path = Path(os.environ.get("OUT", "gpu_out")) / f"{name}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
        today = time.strftime("%Y-%m-%d", time.gmtime())
        self.values: dict[str, Any] = {"device": device, "torch": torch.__version__, "date": today}
        self.values["small"] = options.small

    def __call__(self, key: str, value: Any) -> None:
        self.values[key] = value
        self.path.write_text(json.dumps(self.values, indent=1, default=str), encoding="utf-8")
        print(f"{key}: {value}", flush=True)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part whose failure does not end the others."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self(f"{name}_failed", f"{type(error).__name__}: {error}")

    @property
    def late(self) -> bool:
        return time.monotonic() > self.options.end


def sync(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], device: str, repeat: int = 20, warm: int = 3) -> float:
    """Return the median time of a call, each awaited."""
    taken = []
    for _ in range(warm + repeat):
        sync(device)
        started = time.perf_counter()
        call()
        sync(device)
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken[warm:]) * 1e3, 3)


def memory_mib(device: str) -> dict[str, int]:
    """Return the memory that torch uses on the device, in MiB."""
    if device != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated() // 2**20,
        "reserved": torch.cuda.memory_reserved() // 2**20,
        "peak": torch.cuda.max_memory_allocated() // 2**20,
    }


class EagerBackend(CudaBackend):
    """The same padded steps, never captured."""

    def _capture(self, step: PaddedStep) -> Callable[[], None]:
        return lambda: step.choose(self.decoder.decode(step))


def graphs_of(backend: CudaBackend) -> dict[str, int]:
    """Return how many shapes of steps run as graphs, and how many without one."""
    captured = [
        run for run in backend._runs.values() if isinstance(getattr(run, "__self__", None), torch.cuda.CUDAGraph)
    ]
    return {"captured": len(captured), "without": len(backend._runs) - len(captured)}


def engine_of(
    weights: dict[str, Tensor], config: ModelConfig, options: argparse.Namespace, *, precision: str = "",
    rows: int = 24, backend: type[CudaBackend] = CudaBackend, prefill_seconds: float = 1e9,
) -> Engine:  # fmt: skip
    """Return an engine on the device of `options`, by default in float16 on a GPU and in float32 on a CPU."""
    precision = precision or ("float16" if options.device == "cuda" else "float32")
    tensors = {name: tensor.to(options.device) for name, tensor in language_tensors(weights, precision).items()}
    made = backend(build_language_model(tensors, config, precision), config, rows)
    return Engine(made, config, max_waiting=10_000, prefill_seconds=prefill_seconds)


def put_in_flight(engine: Engine, requests: int, beams: int, tokens: int) -> None:
    """Bring so many requests past prefill."""
    sequences = [
        engine.add(random_request(engine.config, seed, num_beams=beams, max_new_tokens=tokens))
        for seed in range(requests)
    ]
    while not all(sequence.prefilled for sequence in sequences):
        engine.step()


def geometry(options: argparse.Namespace) -> ModelConfig:
    """Return base's geometry, or a small one of the same proportions."""
    if not options.small:
        return BASE
    text = dataclasses.replace(
        BASE.text, vocab_size=2000, d_model=128, encoder_layers=2, decoder_layers=2, encoder_heads=4, decoder_heads=4,
        encoder_ffn=256, decoder_ffn=256,
    )  # fmt: skip
    tokens = dataclasses.replace(BASE.tokens, first_location=900, known=1950)
    return dataclasses.replace(BASE, text=text, tokens=tokens)


def random_request(config: ModelConfig, seed: int, **options: int) -> Request:
    """Return a request with random features and a prompt of 15 tokens."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((config.image.tokens, config.text.d_model), dtype=np.float32)
    prompt = [0, *random.integers(4, config.tokens.first_location, 13).tolist(), 2]
    return Request(features, prompt, config.generation_options(**options))


@torch.inference_mode()
def reference_answers(
    model: Florence2ForConditionalGeneration, config: ModelConfig, requests: Sequence[Request]
) -> list[list[int]]:
    """Return transformers' tokens for requests with equal options and prompts of equal length, as one static batch."""
    features = torch.from_numpy(np.stack([request.image_features for request in requests])).to(
        model.device, model.dtype
    )
    prompts = torch.tensor([request.prompt_ids for request in requests], device=model.device)
    embedded = torch.cat([features, model.get_input_embeddings()(prompts)], dim=1)
    encoded = model.model.language_model.encoder(inputs_embeds=embedded)
    rules = generation_config(config, requests[0].options)
    answers: list[list[int]] = model.generate(encoder_outputs=encoded, generation_config=rules)[:, 1:].tolist()
    for answer in answers:
        while answer and answer[-1] == config.tokens.pad:
            answer.pop()
    return answers
