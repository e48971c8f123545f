"""The vision encoder's linear layers in 8 bits: weights by output channel, activations by ranges seen on images.

Called by `vision`. OpenVINO and ONNX Runtime turn what results, QuantizeLinear and DequantizeLinear around each
product, into 8-bit kernels. Convolutions, norms, softmax and attention's own products are unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static


class Images(CalibrationDataReader):
    """Feeds one image at a time."""

    def __init__(self, name: str, images: Sequence[NDArray[np.uint8]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantize(source: Path, target: Path, images: Sequence[NDArray[np.uint8]]) -> None:
    """Quantize the model in `source` into `target`. images: [H, W, 3] each. Weights are next to both, in NAME.data."""
    model = onnx.load(source, load_external_data=False)
    logging.getLogger().disabled = True  # it recommends steps that change nothing here
    try:
        quantize_static(
            source,
            target,
            Images(model.graph.input[0].name, images),
            nodes_to_quantize=linear_layers(model.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.getLogger().disabled = False


def linear_layers(graph: onnx.GraphProto) -> list[str]:
    """Return the names of products with weights, without the last: OpenVINO 2026.4 fails on its 8-bit form."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights][:-1]
