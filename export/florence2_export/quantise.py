"""The vision encoder's linear layers in 8 bits: weights by output channel, activations by ranges seen on pictures.

Called by `vision`. OpenVINO and ONNX Runtime turn what results, QuantizeLinear and DequantizeLinear around each
product, into 8-bit kernels. Convolutions, norms, softmax and attention's own products stay as they were.
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


class Pictures(CalibrationDataReader):
    """Feeds one picture at a time."""

    def __init__(self, name: str, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{name: picture[None]} for picture in pictures])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantise(source: Path, target: Path, pictures: Sequence[NDArray[np.uint8]]) -> None:
    """pictures: [H, W, 3] each. Both files keep their weights beside them, in NAME.data."""
    model = onnx.load(source, load_external_data=False)
    logging.getLogger().disabled = True  # it advises on steps that change nothing here
    try:
        quantize_static(
            source,
            target,
            Pictures(model.graph.input[0].name, pictures),
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
    """Names of the products with weights, but for the last: OpenVINO 2026.4 fails on its 8-bit form (ADR 0007)."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights][:-1]
