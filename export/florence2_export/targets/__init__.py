"""Fit an export to its target, a CPU or a GPU: the vision encoder's precision, runtime and warm-up.

`pipeline` calls it. It merges cpu.pbtxt, or gpu.pbtxt with cuda.pbtxt or tensorrt.pbtxt, into the committed
config.pbtxt of florence2_vision, so that all targets share one source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from florence2.errors import CheckpointError
from florence2.server.launch import usable_cores
from florence2_export import repository

TARGETS = ("cpu", "gpu")
ACCELERATORS = ("cuda", "tensorrt")
OPENVINO_HINT = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}  # of int8: for all that is not quantized
GPU_ROWS = 96  # 32 requests of 3 beams, if kv_cache_mib allows it
# Processes that decode images in front of a GPU: two of them handle 65 to 95 images a second.
MOST_PREPROCESSES = 8


def vision_precision(target: str, precision: str) -> str:
    """Return what `--precision` means for the vision encoder. Raise CheckpointError if the target cannot compute it.

    On a GPU every precision but float32 means float16: TensorRT has BF16 only since Triton 26.02. int4 is for the
    language model, and leaves the encoder as it is by default.
    """
    if target == "gpu":
        if precision == "int8":
            raise CheckpointError("int8 is for --target cpu; on a GPU choose auto, float16, bfloat16, int4 or float32")
        return "float32" if precision == "float32" else "float16"
    if precision == "float16":
        raise CheckpointError("float16 is for --target gpu; on a CPU choose auto, bfloat16, int8, int4 or float32")
    return "bfloat16" if precision in ("auto", "int4") else precision


def choose_accelerator(target: str, accelerator: str | None, precision: str) -> str | None:
    """Return what runs the vision encoder on a GPU, None on a CPU. `precision` is the result of `vision_precision`.

    CUDA is the default because it starts on every GPU. Raise CheckpointError if the choice cannot be followed.
    """
    if target == "cpu":
        if accelerator:
            raise CheckpointError("--accelerator is for --target gpu; on a CPU the encoder runs in OpenVINO")
        return None
    if accelerator == "tensorrt" and precision == "float32":
        raise CheckpointError("TensorRT computes float32 with 10 bits of mantissa (TF32); choose --accelerator cuda")
    return accelerator or ACCELERATORS[0]


def fit(stage: Path, name: str, target: str, precision: str, accelerator: str | None = None) -> None:
    """Adapt the staged configurations to the target.

    `precision` is the result of `vision_precision`, `accelerator` that of `choose_accelerator`. An export for a CPU
    never uses a GPU of the machine. An export for a GPU also serves without one.
    """
    for role in repository.ROLES:
        model = stage / f"{name}_{role}"
        config = repository.read_config(model)
        if target == "cpu":
            for group in config.instance_group:
                group.kind = ModelInstanceGroup.KIND_CPU
        if role == "decoder" and target == "gpu":
            config.parameters["rows"].string_value = str(GPU_ROWS)
        if role == "preprocess" and target == "gpu":
            config.instance_group[0].count = max(2, min(usable_cores() // 2, MOST_PREPROCESSES))
        if role == "vision":
            _fit_vision(config, (target, accelerator) if accelerator else (target,), precision)
        repository.write_config(model, config)


def _fit_vision(config: ModelConfig, parts: tuple[str, ...], precision: str) -> None:
    """Adapt the encoder's configuration, which must have the checkpoint's dims already."""
    for part in parts:
        text_format.Merge((Path(__file__).parent / f"{part}.pbtxt").read_text(encoding="utf-8"), config)
    dims = {tensor.name: tensor.dims for tensor in config.input}
    for warmup in config.model_warmup:
        for name, tensor in warmup.inputs.items():
            tensor.dims[:] = dims[name]
    accelerators = config.optimization.execution_accelerators
    for openvino in accelerators.cpu_execution_accelerator:
        openvino.parameters["INFERENCE_PRECISION_HINT"] = OPENVINO_HINT[precision]
    for on_gpu in accelerators.gpu_execution_accelerator:
        if precision == "float32":  # by default CUDA multiplies with TF32's 10 bits of mantissa
            on_gpu.parameters["use_tf32"] = "0"


def as_triton_passes_it(config: ModelConfig) -> dict[str, Any]:
    """Return the configuration as a backend gets it: JSON with the field names of the protocol buffers."""
    passed: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return passed
