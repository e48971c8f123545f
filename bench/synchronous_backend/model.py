"""The onnxruntime backend as it was before it encoded images once: within `execute`, behind Triton's response cache.

`bench.encode_once` compares the backend with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from florence2.triton.adapter import response
from florence2.triton.onnx_session import open_session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = (Path(args["model_repository"]) / args["model_version"] / "model.onnx").resolve()  # next to its weights
        self.session = open_session(path, config)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.encode(request) for request in requests]

    def encode(self, request: Any) -> Any:
        pixels = pb_utils.get_input_tensor_by_name(request, "PIXELS").as_numpy()
        return response(self.session.run({"PIXELS": pixels}), request.requested_output_names())
