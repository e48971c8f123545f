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

from florence2.contract import VISION
from florence2.errors import InternalError, QueueFull
from florence2.triton.adapter import error_response
from florence2.triton.admission import Tickets
from florence2.triton.onnx_session import open_session

BUSY = "the vision encoder is busy with requests of the ensemble; send images there, or try again later"


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
        # Other ONNX models in the repository have no tickets.
        self.tickets = Tickets.of_this_server() if self.inputs == [tensor.name for tensor in VISION.inputs] else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch, as the C++ backend does; if that fails, run each by itself."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        responses: list[Any] = [None] * len(requests)
        for i, feed in enumerate(feeds):
            if self.tickets and not self.tickets.may_encode(feed["PIXELS"]):
                responses[i] = error_response(QueueFull(BUSY))
        left = [i for i, response in enumerate(responses) if response is None]
        if self.batches and len(left) > 1:
            try:
                joined = {name: np.concatenate([feeds[i][name] for i in left]) for name in self.inputs}
                starts = np.cumsum([len(feeds[i][self.inputs[0]]) for i in left])[:-1]
                outputs = {name: np.split(output, starts) for name, output in self.session.run(joined).items()}
                for place, i in enumerate(left):
                    responses[i] = self._response(requests[i], {name: parts[place] for name, parts in outputs.items()})
                return responses
            except Exception as error:
                pb_utils.Logger.log_warn(f"a batch of {len(left)} failed, so each request runs by itself: {error}")
        for i in left:
            try:
                responses[i] = self._response(requests[i], self.session.run(feeds[i]))
            except Exception as error:
                pb_utils.Logger.log_error(f"onnxruntime: {error}")
                responses[i] = error_response(
                    InternalError("the vision encoder failed on this request; see the server's log")
                )
        return responses

    def _response(self, request: Any, outputs: dict[str, np.ndarray]) -> Any:
        asked = request.requested_output_names()
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(outputs[name])) for name in self.outputs if name in asked]
        return pb_utils.InferenceResponse(tensors)
