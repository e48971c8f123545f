"""Run an ONNX file the way a model's config.pbtxt says, with ONNX Runtime or OpenVINO, on a CPU or a GPU.

Used by the stand-in backend, by export's parity report, so that it judges what will be served, and by bench/. Like
Triton's C++ onnxruntime backend it reads `intra_op_thread_count`, `cpu_execution_accelerator` and, for an instance on a
GPU, `gpu_execution_accelerator` from the config.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from florence2.errors import ServerError
from florence2.server.gpu import INSTALL_ONNXRUNTIME

OPENVINO = "openvino"
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
# Parameters of the accelerator "tensorrt" that have another name in ONNX Runtime; trt_… are its own.
TENSORRT_NAMES = {"max_workspace_size_bytes": "trt_max_workspace_size"}
TENSORRT_MODES: dict[str, dict[str, str]] = {
    "FP32": {},
    **{mode: {f"trt_{mode.lower()}_enable": "1"} for mode in ("FP16", "BF16", "INT8")},
}
Arrays = Mapping[str, NDArray[Any]]
Providers = list[tuple[str, dict[str, str]]]


class Session(Protocol):
    """An ONNX model ready to run."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Return all outputs by name, given all inputs by name. If the model batches, the first axis is the batch."""
        ...


def open_session(path: Path, config: Mapping[str, Any], gpu: int | None = None) -> Session:
    """Open an ONNX file. Raises ServerError if the configuration cannot be followed here.

    `config`: Triton's ModelConfig as JSON. `gpu`: the device of an instance on a GPU, None for one on the CPU.
    """
    if gpu is not None:
        return OnnxRuntime(path, _threads(config), gpu_providers(config, gpu))
    accelerators = _accelerators(config, "cpu")
    if not accelerators:
        return OnnxRuntime(path, _threads(config))
    (accelerator,) = accelerators
    if accelerator["name"] != OPENVINO:
        raise ServerError(f"unknown execution accelerator {accelerator['name']!r}; on a CPU there is {OPENVINO!r}")
    batches = config.get("max_batch_size", 0) > 0
    return OpenVino(path, _threads(config), batches, accelerator.get("parameters", {}))


def gpu_providers(config: Mapping[str, Any], gpu: int) -> Providers:
    """Return ONNX Runtime's providers for a GPU, best first, with the options that the C++ backend would give them.

    CUDA is always among them; it runs the nodes that TensorRT leaves. Source: LoadModel in the backend's
    src/onnxruntime.cc. Raises ServerError for an accelerator or a parameter that it does not know.
    """
    tensorrt: Providers = []
    cuda = {"device_id": str(gpu)}
    for accelerator in _accelerators(config, "gpu"):
        parameters: dict[str, str] = dict(accelerator.get("parameters", {}))
        if accelerator["name"] == "cuda":
            cuda |= parameters
        elif accelerator["name"] == "tensorrt":
            mode: str = parameters.pop("precision_mode", "FP32")
            options = {TENSORRT_NAMES.get(name, name): value for name, value in parameters.items()}
            if mode not in TENSORRT_MODES:
                raise ServerError(f"unknown precision_mode {mode!r}; TensorRT has {', '.join(TENSORRT_MODES)}")
            tensorrt = [(TENSORRT, {"device_id": str(gpu), **TENSORRT_MODES[mode], **options})]
        else:
            raise ServerError(
                f"unknown execution accelerator {accelerator['name']!r}; on a GPU there are 'cuda' and 'tensorrt'"
            )
    return [*tensorrt, (CUDA, cuda)]


def _accelerators(config: Mapping[str, Any], device: str) -> list[dict[str, Any]]:
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    found: list[dict[str, Any]] = accelerators.get(f"{device}_execution_accelerator", [])
    return found


def _threads(config: Mapping[str, Any]) -> int:
    """Return the threads that the config asks for, else the number that all libraries of the server get."""
    said = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value")
    return int(said or os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


class OnnxRuntime:
    """ONNX Runtime with its own CPU kernels, or with providers for a GPU.

    Results are copied to the CPU's memory: they leave the process through Triton's shared memory in any case.
    """

    def __init__(self, path: Path, threads: int, providers: Providers | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait would take the cores from the decoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        asked = [*(providers or []), (CPU, {})]
        if missing := [name for name, _ in asked if name not in onnxruntime.get_available_providers()]:
            raise ServerError(
                f"the installed onnxruntime is a CPU build, without {missing[0]}; run: {INSTALL_ONNXRUNTIME}"
            )
        if providers:
            onnxruntime.preload_dlls()  # from the packages that torch's CUDA build depends on
        self._session = onnxruntime.InferenceSession(path, options, providers=asked)
        # ONNX Runtime goes on without a provider that it could not load.
        if lost := [name for name, _ in asked if name not in self._session.get_providers()]:
            raise ServerError(
                f"onnxruntime could not start its {lost[0]}, for the reason it gives in the lines before; its "
                "libraries must be installed and fit the NVIDIA driver (docs/gpu.md)"
            )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))


class OpenVino:
    """OpenVINO's CPU plugin.

    Images of a batch run one by one: the kernels gain nothing from a batch, and a graph of fixed shapes is faster than
    one with an open batch dimension (docs/adr/0007).
    """

    def __init__(self, path: Path, threads: int, batches: bool, properties: Mapping[str, str]) -> None:
        """`properties`: of OpenVINO, by name; they override ours."""
        try:
            import openvino
        except ImportError as error:
            raise ServerError(
                "the model's config.pbtxt asks for OpenVINO, which is not installed; run: pip install openvino"
            ) from error
        core = openvino.Core()
        model = core.read_model(path)
        if batches:
            model.reshape({item.any_name: [1, *list(item.partial_shape)[1:]] for item in model.inputs})
        ours = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": "NO"}
        try:
            self._request = core.compile_model(model, "CPU", {**ours, **properties}).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ServerError(f"OpenVINO cannot run the model with {dict(properties)}: {reason}") from error
        self._outputs = [item.any_name for item in model.outputs]
        self._batches = batches

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if not self._batches:
            return self._run_once(feeds)
        count = len(next(iter(feeds.values())))
        parts = [self._run_once({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(count)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _run_once(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        results = self._request.infer(dict(feeds))
        return {name: np.array(results[name]) for name in self._outputs}  # copies: the next run reuses the memory
