"""Stand in for Triton's C++ onnxruntime backend, which the wheel lacks, so that a model repository serves unchanged.

Copied to `backends/onnxruntime/model.py` of the embedded server, where tritonserver runs it for every model with
`backend: "onnxruntime"`. Where libtriton_onnxruntime.so exists, that one is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from florence2.errors import InternalError
from florence2.triton.onnx_session import open_session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or "model.onnx"
        # Resolved, because weights kept in a file of their own are looked for next to the real ONNX file.
        path = (Path(args["model_repository"]) / args["model_version"] / file_name).resolve()
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self.session = open_session(path, config, gpu)
        self.batches = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch, as the C++ backend does; if that fails, run each by itself."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if self.batches and len(requests) > 1:
            try:
                return self._run_together(requests, feeds)
            except Exception as error:
                pb_utils.Logger.log_warn(f"a batch of {len(requests)} failed, so each request runs by itself: {error}")
        responses = []
        for request, feed in zip(requests, feeds, strict=True):
            try:
                responses.append(self._response(request, self.session.run(feed)))
            except Exception as error:
                pb_utils.Logger.log_error(f"onnxruntime: {error}")
                reason = InternalError("the vision encoder failed on this request; see the server's log").wire_message
                failure = pb_utils.TritonError(reason, pb_utils.TritonError.INTERNAL)
                responses.append(pb_utils.InferenceResponse(error=failure))
        return responses

    def _run_together(self, requests: list[Any], feeds: list[dict[str, np.ndarray]]) -> list[Any]:
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        starts = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
        outputs = {name: np.split(output, starts) for name, output in self.session.run(joined).items()}
        return [
            self._response(request, {name: parts[i] for name, parts in outputs.items()})
            for i, request in enumerate(requests)
        ]

    def _response(self, request: Any, outputs: dict[str, np.ndarray]) -> Any:
        asked = request.requested_output_names()
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(outputs[name])) for name in self.outputs if name in asked]
        return pb_utils.InferenceResponse(tensors)
