"""Measure the vision encoder in int8 with ranges that depend on no calibration images (docs/adr/0021).

    python -m bench.encoder_int8 [CHECKPOINT] [--images 8] [--rounds 7]    errors by kind of image, and time
    python -m bench.encoder_int8 --answers 24                              answers of the bundled checkpoint

One thread. Every candidate runs once per round, so that all see the same machine. Times are processor time, which other
programs disturb less; a ratio is the median of the rounds' ratios to bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bench.vision import Encode, clock, compare_answers, encoder, files, relative_error, write_files
from florence2.config import ImageConfig
from florence2.triton.onnx_session import OnnxRuntime, OpenVino
from florence2_export.checkpoint import Checkpoint, read_checkpoint
from florence2_export.sample_images import draw_images
from tools.toy_model import evaluate, scenes

DEVIATIONS = 12  # of a layer norm's normalized values that their 8-bit range covers
TODAY = "OpenVINO bfloat16"
CANDIDATES = {  # file, OpenVINO's precision or none for ONNX Runtime, and activations per range found while it runs
    "OpenVINO float32": ("float32", "f32", 0),
    TODAY: ("float32", "bf16", 0),
    "int8 by calibration images": ("int8", "bf16", 0),
    "int8 by layer norms": ("norms", "bf16", 0),
    "int8 weights, bfloat16": ("weights", "bf16", 0),
    "int8 weights, float32": ("weights", "f32", 0),
    "int8 weights, dynamic int8 in groups of 32": ("weights", "f32", 32),
    "ONNX Runtime dynamic int8": ("dynamic", "", 0),
}


def open_candidates(checkpoint: Checkpoint, folder: Path) -> Iterator[tuple[str, Encode]]:
    write_files(checkpoint, folder)
    exact = files(folder)[0]
    for name, by_norms in ("norms", True), ("weights", False):
        (folder / name).mkdir()
        quantize_products(exact, folder / name / exact.name, by_norms)
    for name, (file, precision, group) in CANDIDATES.items():
        path = folder / file / exact.name
        properties = {"INFERENCE_PRECISION_HINT": precision, "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group)}
        yield name, encoder(OpenVino(path, 1, True, properties) if precision else OnnxRuntime(path, 1))


def quantize_products(source: Path, target: Path, by_norms: bool) -> None:
    """Write the model with int8 weights, by output channel, in its linear layers.

    With `by_norms` only layers that follow a layer norm, and their inputs, too: the norm's own weights give the range.
    """
    model = onnx.load(source)
    graph = model.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, name: str, arrays: list[NDArray[np.generic]]) -> str:
        """Add a node that takes the output `name` and constants, and return its output."""
        result = f"{name}_{kind}_{len(nodes)}"
        inputs = [f"{result}_{number}" for number in range(len(arrays))]
        graph.initializer.extend(map(numpy_helper.from_array, arrays, inputs))
        nodes.append(helper.make_node(kind, [name, *inputs][-3:], [result]))
        return result

    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            norm = producers.get(node.input[0])
            while norm and norm.op_type in ("Reshape", "Transpose", "Pad", "Slice"):
                norm = producers.get(norm.input[0])
            after_norm = norm is not None and norm.op_type == "LayerNormalization"
            if after_norm or not by_norms:
                weight = tensors[node.input[1]]
                scales = np.maximum(np.abs(weight).max(axis=0) / 127, 1e-12).astype(np.float32)
                eight = np.round(weight / scales).astype(np.int8)
                node.input[1] = add("DequantizeLinear", node.input[1], [eight, scales, np.zeros(len(scales), np.int8)])
            if norm and after_norm and by_norms:
                gain, shift = tensors[norm.input[1]], tensors[norm.input[2]]
                reach = np.abs(gain) * min(DEVIATIONS, len(gain) ** 0.5)  # no normalized value is above the root
                low, high = min(0, (shift - reach).min()), max(0, (shift + reach).max())
                scale = np.array((high - low) / 255, np.float32)
                zero = np.array(np.round(-low / scale), np.uint8)
                real = add("QuantizeLinear", node.input[0], [scale, zero])
                node.input[0] = add("DequantizeLinear", real, [scale, zero])
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")


def images(config: ImageConfig, count: int) -> dict[str, NDArray[np.uint8]]:
    """Return images [count, H, W, 3] by kind. The spectrum of natural images falls with the frequency."""
    random = np.random.default_rng(0)
    shape = (count, config.height, config.width, 3)
    drawn = [scenes.make_scene(seed).draw(384).resize(shape[2:0:-1], config.resample) for seed in range(count)]
    frequency = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.fftfreq(shape[2])) + 1 / shape[1]
    natural = np.fft.ifft2(np.fft.fft2(random.normal(size=shape), axes=(1, 2)) / frequency[..., None], axes=(1, 2)).real
    natural = natural / natural.std(axis=(1, 2), keepdims=True) * 55 + 110
    return {
        "scenes": np.stack([np.asarray(scene) for scene in drawn]),
        "shapes": np.stack([np.asarray(image) for image in draw_images(config, count)]),
        "noise": random.integers(0, 256, shape, np.uint8),
        "flat": np.broadcast_to(random.integers(0, 256, (count, 1, 1, 3), np.uint8), shape),
        "1/f noise": natural.clip(0, 255).astype(np.uint8),
    }


def measure(checkpoint: Checkpoint, folder: Path, count: int, rounds: int) -> Iterator[str]:
    kinds = images(checkpoint.config.image, count)
    one = kinds["scenes"][:1]
    encoders = dict(open_candidates(checkpoint, folder))
    exact = {kind: next(iter(encoders.values()))(batch) for kind, batch in kinds.items()}
    errors = {
        name: [f"{relative_error(encode(batch), exact[kind]):.1e}" for kind, batch in kinds.items()]
        for name, encode in encoders.items()
    }
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encode in encoders.items():
            times[name].append(clock(lambda encode=encode: encode(one))[1] * 1000)
    yield f"| | {' | '.join(kinds)} | ms per image | times bfloat16's |"
    yield f"|---|{'---|' * (len(kinds) + 2)}"
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, times[TODAY], strict=True))
        yield f"| {name} | {' | '.join(errors[name])} | {statistics.median(taken):.0f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=str(evaluate.CHECKPOINT))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--answers", type=int, metavar="SCENES")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = read_checkpoint(options.checkpoint)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.answers:
            lines = compare_answers(options.answers, dict(open_candidates(checkpoint, folder)))
        else:
            lines = measure(checkpoint, folder, options.images, options.rounds)
        print(*lines, sep="\n")


if __name__ == "__main__":
    main()
