"""The vision encoder as ONNX: uint8 pixels in, the language model's image tokens out, any batch.

`pipeline` calls it. Shapes: B images, H x W pixels, T image tokens, D = d_model.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from florence2_export.checkpoint import Checkpoint
from florence2_export.davit import Projector, Tower, to_dtype
from florence2_export.quantize import quantize
from florence2_export.sample_images import calibration_images

INPUT, OUTPUT = "PIXELS", "IMAGE_FEATURES"  # as in florence2_vision/config.pbtxt
OPSET = 18  # the exporter adds IR 10; ONNX Runtime 1.19 of Triton 24.10 reads both
MAX_BATCH = 64


class VisionEncoder(nn.Module):
    """Normalization, tower and projector of one checkpoint; `dtype` is that of convolutions and linear layers."""

    mean: Tensor
    std: Tensor

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        image, architecture = checkpoint.config.image, checkpoint.architecture
        self.dtype = dtype
        with torch.device("meta"):  # no memory is filled with random weights only to be overwritten
            self.tower = Tower(architecture.vision_config, image.height, image.width)
            self.projector = Projector(architecture)
        self.tower.load_state_dict(_weights(checkpoint, "vision_tower."), assign=True)
        self.tower.fold_scales()
        projector = _weights(checkpoint, "multi_modal_projector.")
        columns, rows = (projector.pop(f"image_position_embed.{axis}_embeddings.weight") for axis in ("column", "row"))
        frames = projector.pop("visual_temporal_embed.pos_idx_to_embed")
        self.projector.load_state_dict(projector, assign=True)
        self.projector.set_position(columns, rows, frames[0], *self.tower.sizes[-1])
        for module in (self.tower, self.projector):
            to_dtype(module, dtype)
        self.register_buffer("mean", torch.tensor(image.mean))
        self.register_buffer("std", torch.tensor(image.std))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, T, D], what transformers calls `pooler_output`."""
        normalized = (pixels.to(torch.float32) / 255 - self.mean) / self.std
        features: Tensor = self.projector(self.tower(normalized.flatten(1, 2).to(self.dtype)))
        return features.float()


def _weights(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """Return the weights of one part of the checkpoint, in float32 under the part's own names."""
    prefix = f"model.{prefix}"
    return {
        name.removeprefix(prefix): tensor.to(torch.float32).contiguous()
        for name, tensor in checkpoint.weights.items()
        if name.startswith(prefix)
    }


def export_vision(checkpoint: Checkpoint, path: Path, precision: str, provenance: Mapping[str, str]) -> None:
    """Write the graph to `path` and the weights next to it, to `path` + ".data".

    One file would be built in memory from several copies of them (base: 2.9 GB instead of 1.2 at the peak).
    `precision`: float32 serves bfloat16 too, which the runtime chooses; float16 and int8 are in the file.
    `provenance` goes into the file.
    """
    program = trace(VisionEncoder(checkpoint, torch.float16 if precision == "float16" else torch.float32), checkpoint)
    _strip_traces(program)
    program.model.metadata_props.update(provenance)
    if precision != "int8":
        program.save(path, external_data=True)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        program.save(whole, external_data=True)
        del program
        quantize(whole, path, calibration_images(checkpoint.config.image))


def trace(encoder: VisionEncoder, checkpoint: Checkpoint) -> torch.onnx.ONNXProgram:
    image = checkpoint.config.image
    # With one example image the exporter would treat the batch as a constant.
    example = torch.zeros(2, image.height, image.width, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            encoder.eval().requires_grad_(False),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}},
            verbose=False,
        )
    assert program is not None
    return program


def _strip_traces(program: torch.onnx.ONNXProgram) -> None:
    """Drop the exporter's notes on every node and value: stack traces with the paths of this machine."""
    graph = program.model.graph
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
