"""Run an ONNX file the way a model's config.pbtxt says, with ONNX Runtime or OpenVINO.

Used by the stand-in backend, by export's parity report, so that it judges what will be served, and by bench/. Like
Triton's C++ onnxruntime backend it reads `intra_op_thread_count` and `cpu_execution_accelerator` from the config.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from florence2.errors import ServerError

OPENVINO = "openvino"
Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """An ONNX model ready to run."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Return all outputs by name, given all inputs by name. If the model batches, the first axis is the batch."""
        ...


def open_session(path: Path, config: Mapping[str, Any]) -> Session:
    """Open an ONNX file. `config`: Triton's ModelConfig as JSON. Raises ServerError if it cannot be followed here."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    if not accelerators:
        return OnnxRuntime(path, _threads(config))
    (accelerator,) = accelerators
    if accelerator["name"] != OPENVINO:
        raise ServerError(f"unknown execution accelerator {accelerator['name']!r}; on a CPU there is {OPENVINO!r}")
    batches = config.get("max_batch_size", 0) > 0
    return OpenVino(path, _threads(config), batches, accelerator.get("parameters", {}))


def _threads(config: Mapping[str, Any]) -> int:
    """Return the threads that the config asks for, else the number that all libraries of the server get."""
    said = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value")
    return int(said or os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


class OnnxRuntime:
    """ONNX Runtime's own CPU kernels."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait would take the cores from the decoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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
