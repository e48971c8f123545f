"""The vision encoder as ONNX: uint8 pixels in, the language model's image tokens out, any batch.

Called by `export.pipeline`. Shapes: B pictures, H x W pixels, T image tokens, D = d_model, h heads or groups,
n and m queries and keys, c channels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.florence2.modeling_florence2 import Florence2MultiModalProjector, Florence2VisionBackbone

import florence2
from export.checkpoint import Checkpoint

INPUT, OUTPUT = "PIXELS", "IMAGE_FEATURES"  # as in florence2_vision/config.pbtxt
OPSET = 18  # the exporter adds IR 10; ONNX Runtime 1.19 of Triton 24.10 reads both
MAX_BATCH = 64
ATTENTION = "florence2_query_scaled_first"


def query_scaled_first(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """[B, h, n, c], [B, h, m, c], [B, h, m, c] -> [B, n, h, c].

    Channel attention sums over all tokens (36,864 in base's first stage): scaled afterwards, as transformers' eager
    form does, the sum could leave float16's range. The result is the same.
    """
    weights = torch.softmax((query * scaling) @ key.transpose(-2, -1), dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, query_scaled_first)


class VisionEncoder(nn.Module):
    """Normalisation, tower and projector of one checkpoint in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        image = checkpoint.config.image
        architecture = copy.deepcopy(checkpoint.architecture)  # the reference of the parity report uses the original
        architecture.vision_config._attn_implementation = ATTENTION
        with torch.device("meta"):  # no memory is filled with random weights only to be overwritten
            self.tower = Florence2VisionBackbone(architecture.vision_config)
            self.projector = Florence2MultiModalProjector(architecture)
        _load(self.tower, checkpoint.weights, "model.vision_tower.")
        _load(self.projector, checkpoint.weights, "model.multi_modal_projector.")
        self.register_buffer("mean", torch.tensor(image.mean))
        self.register_buffer("std", torch.tensor(image.std))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, T, D], what transformers calls `pooler_output`."""
        normalised = (pixels.to(torch.float32) / 255 - self.mean) / self.std
        features: Tensor = self.projector(self.tower(normalised.permute(0, 3, 1, 2)).last_hidden_state)
        return features


def _load(module: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> None:
    state = {
        name.removeprefix(prefix): tensor.to(torch.float32).contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    module.load_state_dict({name: state[name] for name in module.state_dict()}, assign=True)


def export_vision(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the graph to `path` and the weights beside it, to `path` + ".data".

    One file would be built in memory from several copies of them (base: 2.9 GB instead of 1.2 at the peak).
    """
    encoder = VisionEncoder(checkpoint).eval().requires_grad_(False)
    image = checkpoint.config.image
    # With one example picture the exporter would take the batch for a constant.
    example = torch.zeros(2, image.height, image.width, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            encoder,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}},
            verbose=False,
        )
    assert program is not None
    _strip_traces(program)
    program.model.metadata_props.update(identity(checkpoint))
    program.save(path, external_data=True)


def identity(checkpoint: Checkpoint) -> dict[str, str]:
    """What the file says of its own making; nothing that changes from one run to the next."""
    return {
        "checkpoint": checkpoint.config.source,
        "florence2-triton": florence2.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _strip_traces(program: torch.onnx.ONNXProgram) -> None:
    """Drops the exporter's notes on every node and value: stack traces with the paths of this machine."""
    graph = program.model.graph
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
