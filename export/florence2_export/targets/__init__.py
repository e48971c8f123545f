"""Fit an export to its target, a CPU or a GPU: the vision encoder's precision, runtime and warm-up.

`pipeline` calls it. It merges cpu.pbtxt or gpu.pbtxt into the committed config.pbtxt of florence2_vision, so that both
targets share one source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from florence2.errors import CheckpointError
from florence2_export import repository

TARGETS = ("cpu", "gpu")
OPENVINO_HINT = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}  # of int8: for all that is not quantized
TENSORRT_MODE = {"float32": "FP32", "float16": "FP16"}


def vision_precision(target: str, precision: str) -> str:
    """Return what `--precision` means for the vision encoder. Raise CheckpointError if the target cannot compute it.

    On a GPU every precision but float32 means float16: TensorRT has BF16 only since Triton 26.02.
    """
    if target == "gpu":
        if precision == "int8":
            raise CheckpointError("int8 is for --target cpu; on a GPU choose auto, float16, bfloat16 or float32")
        return "float32" if precision == "float32" else "float16"
    if precision == "float16":
        raise CheckpointError("float16 is for --target gpu; on a CPU choose auto, bfloat16, int8 or float32")
    return "bfloat16" if precision == "auto" else precision


def fit(stage: Path, name: str, target: str, precision: str) -> None:
    """Adapt the staged configurations to the target. `precision` is the result of `vision_precision`.

    An export for a CPU never uses a GPU of the machine. An export for a GPU also serves without one.
    """
    for role in repository.ROLES:
        model = stage / f"{name}_{role}"
        config = repository.read_config(model)
        if target == "cpu":
            for group in config.instance_group:
                group.kind = ModelInstanceGroup.KIND_CPU
        if role == "vision":
            _fit_vision(config, target, precision)
        repository.write_config(model, config)


def _fit_vision(config: ModelConfig, target: str, precision: str) -> None:
    """Adapt the encoder's configuration, which must have the checkpoint's dims already."""
    folder = Path(__file__).parent
    text_format.Merge((folder / f"{target}.pbtxt").read_text(encoding="utf-8"), config)
    dims = {tensor.name: tensor.dims for tensor in config.input}
    for warmup in config.model_warmup:
        for name, tensor in warmup.inputs.items():
            tensor.dims[:] = dims[name]
    accelerators = config.optimization.execution_accelerators
    for openvino in accelerators.cpu_execution_accelerator:
        openvino.parameters["INFERENCE_PRECISION_HINT"] = OPENVINO_HINT[precision]
    for tensorrt in accelerators.gpu_execution_accelerator:
        tensorrt.parameters["precision_mode"] = TENSORRT_MODE[precision]
        full = config.max_batch_size
        for profile, batch in ("min", 1), ("opt", max(1, full // 2)), ("max", full):
            shapes = (f"{name}:{'x'.join(map(str, (batch, *sizes)))}" for name, sizes in dims.items())
            tensorrt.parameters[f"trt_profile_{profile}_shapes"] = ",".join(shapes)


def as_triton_passes_it(config: ModelConfig) -> dict[str, Any]:
    """Return the configuration as a backend gets it: JSON with the field names of the protocol buffers."""
    passed: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return passed
