"""The vision encoder: in torch, eager and as a graph, as exported in ONNX Runtime, and transformers'.

Against what the device reaches in large matrix products and copies. Base geometry, random weights.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Florence2ForConditionalGeneration

from bench.checkpoints import BUNDLED, base_config
from bench.decode import BASE
from bench.gpu.harness import Report, arguments, memory_mib, milliseconds
from florence2.triton.onnx_session import open_session
from florence2_export import repository, targets
from florence2_export.checkpoint import read_checkpoint
from florence2_export.vision import INPUT, OUTPUT, VisionEncoder, export_vision


def model_and_checkpoint(options: argparse.Namespace) -> tuple[Florence2ForConditionalGeneration, Any]:
    """Return base with random weights, or the bundled checkpoint for a CPU."""
    if options.small:
        checkpoint = read_checkpoint(str(BUNDLED))
        return Florence2ForConditionalGeneration.from_pretrained(BUNDLED, dtype=torch.float32).eval(), checkpoint
    torch.manual_seed(0)
    with torch.device(options.device):
        model = Florence2ForConditionalGeneration(base_config()).eval()
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items() if "language_model" not in name}
    return model, SimpleNamespace(config=BASE, architecture=model.config, weights=weights)


def captured(call: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a replay of a graph of the call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@torch.inference_mode()
def main() -> None:
    options = arguments(__doc__)
    report, device, cuda = Report(options, "encoder"), options.device, options.device == "cuda"
    model, checkpoint = model_and_checkpoint(options)
    image, batches = checkpoint.config.image, (1, 2) if options.small else (1, 8, 16)
    pixels = torch.randint(0, 256, (max(batches), image.height, image.width, 3), dtype=torch.uint8, device=device)
    exact = VisionEncoder(checkpoint, torch.float32).to(device).eval()
    normalized = ((pixels.float() / 255 - exact.mean) / exact.std).permute(0, 3, 1, 2)
    features = exact(pixels[:1])
    theirs = model.model.get_image_features(normalized[:1]).pooler_output
    report("float32_error_against_transformers", float((features - theirs).norm() / theirs.norm()))
    half = torch.float16 if cuda else torch.bfloat16
    side = 8192 if cuda else 512
    one = torch.randn(side, side, device=device, dtype=half)
    product = milliseconds(lambda: one @ one, device)
    report("matrix_product_tflops", round(2 * side**3 / product / 1e9, 1))
    source = torch.randn(2**29 if cuda else 2**24, device=device)
    copied = torch.empty_like(source)
    moved = milliseconds(functools.partial(copied.copy_, source), device)
    report("copy_tb_per_second", round(2 * source.nbytes / moved / 1e9, 3))
    del source, copied
    with FlopCounterMode(display=False) as counter:
        exact(pixels[:1])
    report("gflop_per_image", round(counter.get_total_flops() / 1e9, 1))
    forms: dict[str, Callable[[Tensor], Tensor]] = {"ours": VisionEncoder(checkpoint, half).to(device).eval()}
    model.to(half)
    forms["transformers"] = lambda pixels: (
        model.model.get_image_features(
            ((pixels.float() / 255 - exact.mean) / exact.std).permute(0, 3, 1, 2).to(half)
        ).pooler_output
    )
    for name, form in forms.items():
        with report.part(name):
            report(f"{name}_half_error", float((form(pixels[:1]).float() - features).norm() / features.norm()))
            for batch in batches:
                if report.late:
                    return
                part = pixels[:batch]
                cells = {"eager": milliseconds(lambda form=form, part=part: form(part), device, 5) / batch}
                if cuda:
                    cells["graph"] = milliseconds(captured(lambda form=form, part=part: form(part)), device, 5) / batch
                report(f"{name}_ms_per_image_batch_{batch}", {form: round(cell, 3) for form, cell in cells.items()})
    report("memory_mib", memory_mib(device))
    with report.part("onnx"):
        onnx(report, checkpoint, features.cpu().numpy(), pixels.cpu().numpy(), batches)


def onnx(report: Report, checkpoint: Any, features: NDArray[np.float32], pixels: NDArray[np.uint8],
         batches: Sequence[int]) -> None:  # fmt: skip
    """Time the exported encoder in ONNX Runtime, with the copies to and from the device that serving needs."""
    device, cuda = report.options.device, report.options.device == "cuda"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dims = repository.true_dims(checkpoint.config.image, checkpoint.config.text.d_model)
        repository.copy_template(folder, "florence2", 1, dims, {})
        targets.fit(folder, "florence2", "gpu", "float16", "cuda")
        file = repository.version_directory(folder, "florence2", "vision", 1) / "model.onnx"
        export_vision(checkpoint, file, "float16", {})
        config = targets.as_triton_passes_it(repository.read_config(folder / "florence2_vision"))
        session = open_session(file, config, gpu=0 if cuda else None)
        ours = session.run({INPUT: pixels[:1]})[OUTPUT]
        report("onnx_half_error", float(np.linalg.norm(ours - features) / np.linalg.norm(features)))
        for batch in batches:
            feeds = {INPUT: pixels[:batch]}
            taken = milliseconds(lambda feeds=feeds: session.run(feeds), device, 5)
            report(f"onnx_ms_per_image_batch_{batch}", round(taken / batch, 3))


if __name__ == "__main__":
    main()
