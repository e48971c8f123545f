"""Measure the vision encoder's speed, and what each way of running it changes.

    python -m bench.vision CHECKPOINT [--batches 1 2] [--rounds 5] [--threads N]    speed and error
    python -m bench.vision --answers 300                                             answers of the bundled checkpoint

Speed: every candidate runs once per round, so that all see the same machine. Figures are medians of the rounds, and the
ratio to transformers is the median of the rounds' ratios. The goal is the time that this machine's matrix products take
for the encoder's operations. Answers: the bundled checkpoint, greedy, on drawn scenes it was not trained on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.utils.flop_counter import FlopCounterMode

from florence2.triton.onnx_session import OnnxRuntime, OpenVino, Session
from florence2_export.checkpoint import Checkpoint, read_checkpoint
from florence2_export.reference import load_reference
from florence2_export.sample_images import draw_images
from florence2_export.vision import INPUT, OUTPUT, export_vision
from tools.toy_model import architecture, evaluate, scenes

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 [B, H, W, 3] -> float32 [B, T, D]
Seconds = tuple[float, float]  # elapsed, and of all threads together, which other programs disturb less
REFERENCE = "transformers float32"
SIDE = 2048  # of the matrices whose product measures the machine's speed
SIZE = 384  # of the drawn scenes


def write_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the models that `export` writes, and ONNX Runtime's own dynamic int8."""
    exact, eight, dynamic = files(folder)
    for path, precision in (exact, "float32"), (eight, "int8"):
        path.parent.mkdir()
        export_vision(checkpoint, path, precision, {})
    dynamic.parent.mkdir()
    quantize_dynamic(
        exact, dynamic, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
        use_external_data_format=True, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip


def files(folder: Path) -> list[Path]:
    return [folder / name / "model.onnx" for name in ("float32", "int8", "dynamic")]


def candidates(folder: Path, threads: int) -> dict[str, Encode]:
    exact, eight, dynamic = files(folder)
    sessions: dict[str, Session] = {
        "ONNX Runtime float32": OnnxRuntime(exact, threads),
        "ONNX Runtime int8, dynamic": OnnxRuntime(dynamic, threads),
        "ONNX Runtime int8, static": OnnxRuntime(eight, threads),
        "OpenVINO float32": OpenVino(exact, threads, True, {"INFERENCE_PRECISION_HINT": "f32"}),
        "OpenVINO bfloat16, open batch": OpenVino(exact, threads, False, {"INFERENCE_PRECISION_HINT": "bf16"}),
        "OpenVINO bfloat16": OpenVino(exact, threads, True, {"INFERENCE_PRECISION_HINT": "bf16"}),
        "OpenVINO int8, static, rest bfloat16": OpenVino(eight, threads, True, {"INFERENCE_PRECISION_HINT": "bf16"}),
    }
    return {name: encoder(session) for name, session in sessions.items()}


def encoder(session: Session) -> Encode:
    return lambda pixels: session.run({INPUT: pixels})[OUTPUT]


def transformers_encoder(checkpoint: Checkpoint) -> Encode:
    image, model = checkpoint.config.image, load_reference(checkpoint).model

    @torch.inference_mode()
    def encode(pixels: np.ndarray) -> np.ndarray:
        values = (torch.from_numpy(pixels).float() / 255 - torch.tensor(image.mean)) / torch.tensor(image.std)
        features: torch.Tensor = model.get_image_features(values.permute(0, 3, 1, 2).contiguous()).pooler_output
        return features.numpy()

    return encode


def matrix_products(flops: int) -> dict[str, Callable[[], Seconds]]:
    """Return functions that measure so many operations as large matrix products of torch."""

    def seconds(dtype: torch.dtype) -> Seconds:
        a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
        wall, processor = zip(*(clock(lambda: a @ b) for _ in range(5)), strict=True)
        share = flops / (2 * SIDE**3)
        return min(wall) * share, min(processor) * share

    return {
        "matrix products float32": lambda: seconds(torch.float32),
        "matrix products bfloat16": lambda: seconds(torch.bfloat16),
    }


def clock(work: Callable[[], object]) -> Seconds:
    start, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - processor


def count_flops(encode: Encode, pixels: np.ndarray) -> int:
    with FlopCounterMode(display=False) as counter:
        encode(pixels)
    return counter.get_total_flops()


def measure(encoders: dict[str, Encode], pixels: np.ndarray, flops: int, rounds: int) -> Iterator[str]:
    expected = encoders[REFERENCE](pixels)
    errors = {name: relative_error(encode(pixels), expected) for name, encode in encoders.items()}  # warms up, too
    times: dict[str, list[Seconds]] = defaultdict(list)
    for _ in range(rounds):
        for name, encode in encoders.items():
            times[name].append(clock(lambda encode=encode: encode(pixels)))
        for name, seconds in matrix_products(flops * len(pixels)).items():
            times[name].append(seconds())
    yield f"batch of {len(pixels)}, {flops / 1e9:.0f} GFLOP per image, {rounds} rounds"
    yield "| | seconds per image | times as fast | processor seconds | times less | relative error |"
    yield "|---|---|---|---|---|---|"
    for name, taken in times.items():
        cells = []
        for kind in range(2):
            ratio = statistics.median(
                theirs[kind] / ours[kind] for theirs, ours in zip(times[REFERENCE], taken, strict=True)
            )
            cells += [f"{statistics.median(one[kind] for one in taken) / len(pixels):.2f}", f"{ratio:.2f}"]
        yield f"| {name} | {' | '.join(cells)} | {f'{errors[name]:.1e}' if name in errors else ''} |"


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def compare_answers(count: int, encoders: dict[str, Encode]) -> Iterator[str]:
    """Let transformers answer with the features of each encoder in turn. Answers are compared with the first one's."""
    checkpoint = read_checkpoint(str(evaluate.CHECKPOINT))
    model, processor = architecture.load(evaluate.CHECKPOINT)
    drawn = [scenes.make_scene(seed).draw(SIZE) for seed in range(count)]
    examples = [
        (seed, task, example)
        for seed in range(count)
        for task, example in scenes.make_examples(scenes.make_scene(seed), seed).items()
    ]
    image = checkpoint.config.image
    pixels = np.stack([np.asarray(one.resize((image.width, image.height), image.resample)) for one in drawn])
    features = {
        name: torch.from_numpy(np.concatenate([encode(one[None]) for one in pixels]))
        for name, encode in encoders.items()
    }
    scores = {name: defaultdict(evaluate.Scores) for name in features}
    yield f"{len(examples)} answers about {count} scenes"
    seeds = [seed for seed, _, _ in examples]
    images, texts = [drawn[seed] for seed in seeds], [example.processor_text for _, _, example in examples]
    reference: list[str] = []
    for name, own in features.items():
        answers = ask(model, processor, images, own[seeds], texts)
        reference = reference or answers
        yield f"{name}: {sum(a != b for a, b in zip(answers, reference, strict=True))} changed"
        for answer, (_, task, example) in zip(answers, examples, strict=True):
            scores[name][task].answers += 1
            evaluate.MEASURES[task][0](scores[name][task], answer, example.target)
    yield evaluate.table(scores)


def ask(model, processor, images, features, texts, few: int = 50) -> list[str]:
    """Return the evaluation's answers with these image features [B, T, D] in place of the model's own."""
    answers: list[str] = []
    for start in range(0, len(texts), few):
        part = slice(start, start + few)
        with patch.object(model.model, "get_image_features", given(features[part])):
            answers += evaluate.ask(model, processor, images[part], texts[part], beams=1)
    return answers


def given(features):
    """Return a replacement for get_image_features; `generate` passes the arguments that its signature names."""
    return lambda pixel_values, **_options: SimpleNamespace(pooler_output=features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=str(evaluate.CHECKPOINT))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--answers", type=int, metavar="SCENES")
    options = parser.parse_args()
    if options.answers and options.checkpoint != str(evaluate.CHECKPOINT):
        parser.error("--answers needs the bundled checkpoint, because its scenes have known answers")
    torch.set_num_threads(options.threads)
    checkpoint = read_checkpoint(options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        write_files(checkpoint, Path(folder))
        encoders = {REFERENCE: transformers_encoder(checkpoint), **candidates(Path(folder), options.threads)}
        if options.answers:
            print(*compare_answers(options.answers, encoders), sep="\n")
            return
        images = draw_images(checkpoint.config.image, max(options.batches))
        pixels = np.stack([np.asarray(image) for image in images])
        flops = count_flops(encoders[REFERENCE], pixels[:1])
        for batch in options.batches:
            print(*measure(encoders, pixels[:batch], flops, options.rounds), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
