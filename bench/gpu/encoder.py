"""The vision encoder as it is exported, in torch: eager and as a graph, against transformers' and the device's peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from bench.competitors import base_config
from bench.decode import BASE
from bench.gpu.harness import Report, arguments, memory_mib, milliseconds
from florence2_export.checkpoint import read_checkpoint
from florence2_export.vision import VisionEncoder

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


def model_and_checkpoint(report: Report) -> tuple[Florence2ForConditionalGeneration, Any]:
    """Return base with random weights, or the bundled checkpoint for a CPU."""
    if report.options.small:
        checkpoint = read_checkpoint(str(CHECKPOINT))
        return Florence2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval(), checkpoint
    torch.manual_seed(0)
    with torch.device(report.options.device):
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
    model, checkpoint = model_and_checkpoint(report)
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
                report(f"{name}_ms_per_image_batch_{batch}", cells)
    report("memory_mib", memory_mib(device))


if __name__ == "__main__":
    main()
