"""Export the vision encoder as ONNX: from uint8 pixels to the language model's image tokens, in any batch.

`pipeline` calls it. Shapes: B images, H x W pixels, T image tokens, D = d_model.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from torch import Tensor, nn

from florence2_export.checkpoint import Checkpoint
from florence2_export.davit import Projector, Tower, to_dtype
from florence2_export.sample_images import calibration_images

INPUT, OUTPUT = "PIXELS", "IMAGE_FEATURES"  # as in florence2_vision/config.pbtxt
OPSET = 18  # the exporter writes it with IR 10; ONNX Runtime 1.19, of Triton 24.10, reads both
MAX_BATCH = 64


class VisionEncoder(nn.Module):
    """A checkpoint's normalization, tower and projector. `dtype` is that of convolutions and linear layers."""

    mean: Tensor
    std: Tensor

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        image, architecture = checkpoint.config.image, checkpoint.architecture
        self.dtype = dtype
        with torch.device("meta"):  # allocates no random weights that would only be overwritten
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
        """Map uint8 [B, H, W, 3] to float32 [B, T, D], which transformers calls `pooler_output`."""
        normalized = (pixels.to(torch.float32) / 255 - self.mean) / self.std
        features: Tensor = self.projector(self.tower(normalized.flatten(1, 2).to(self.dtype)))
        return features.float()


def _weights(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """Return the weights of one part of the checkpoint in float32, under the part's own names."""
    prefix = f"model.{prefix}"
    return {
        name.removeprefix(prefix): tensor.to(torch.float32).contiguous()
        for name, tensor in checkpoint.weights.items()
        if name.startswith(prefix)
    }


def export_vision(checkpoint: Checkpoint, path: Path, precision: str, provenance: Mapping[str, str]) -> None:
    """Write the graph to `path` and the weights next to it, to `path` + ".data".

    Writing one file would hold several copies of the weights in memory (base: 2.9 GB instead of 1.2 at the peak).
    For bfloat16, a setting of the runtime, the file holds float32; float16 and int8 are in the file itself.
    `provenance` becomes the file's metadata.
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
    """Return the encoder as an ONNX program with a dynamic batch."""
    image = checkpoint.config.image
    # With a single example image the exporter would treat the batch as a constant.
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
    """Remove the exporter's metadata of nodes and values: stack traces with paths of this machine."""
    graph = program.model.graph
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


class Images(CalibrationDataReader):
    """Feed one image at a time."""

    def __init__(self, name: str, images: Sequence[NDArray[np.uint8]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantize(source: Path, target: Path, images: Sequence[NDArray[np.uint8]]) -> None:
    """Write the model in `source` to `target` with its linear layers in 8 bits.

    Weights are quantized per output channel, activations by the ranges that `images`, [H, W, 3] each, produce. OpenVINO
    and ONNX Runtime turn the resulting QuantizeLinear and DequantizeLinear around each product into 8-bit kernels.
    Convolutions, norms, softmax and attention's own products are unchanged. The weights of both files are next to them,
    in NAME.data.
    """
    graph = onnx.load(source, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    logging.getLogger().disabled = True  # it recommends steps that change nothing here
    try:
        quantize_static(
            source,
            target,
            Images(graph.input[0].name, images),
            nodes_to_quantize=products[:-1],  # OpenVINO 2026.4 fails on the last one in 8 bits
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.getLogger().disabled = False
