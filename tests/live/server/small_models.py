"""Small models that a server loads in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

BATCHING = "dynamic_batching { max_queue_delay_microseconds: 300000 }"
PYTHON_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        {execute}
        outputs = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() * 2 for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", output)]) for output in outputs]
"""
CONFIG = """
name: "{name}"
backend: "{backend}"
max_batch_size: {batch}
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
{more}
"""


def python_model(repository: Path, name: str = "double", initialize: str = "pass", execute: str = "pass") -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(PYTHON_MODEL.format(initialize=initialize, execute=execute))
    config = CONFIG.format(name=name, backend="python", batch=0, more="")
    (version.parent / "config.pbtxt").write_text(config)
    return repository


def onnx_model(repository: Path, name: str = "triple") -> Path:
    """Write a model of Y = 3 * X, with the 3 in a file next to the model, as for the weights of large checkpoints."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    x, y = (helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", "n"]) for tensor in "XY")
    three = onnx.numpy_helper.from_array(np.full(1, 3, np.float32), "three")
    graph = helper.make_graph([helper.make_node("Mul", ["X", "three"], ["Y"])], name, [x], [y], [three])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, version / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    config = CONFIG.format(name=name, backend="onnxruntime", batch=8, more=BATCHING)
    (version.parent / "config.pbtxt").write_text(config)
    return repository
