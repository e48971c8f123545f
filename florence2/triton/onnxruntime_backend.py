"""Stand in for Triton's C++ onnxruntime backend, which the wheel lacks, so that a model repository serves unchanged.

Copied to `backends/onnxruntime/model.py` of the embedded server, where tritonserver runs it for every model with
`backend: "onnxruntime"`. Where libtriton_onnxruntime.so exists, that one is used.

`execute` hands each request to the encoder's thread and returns None for it, so that Triton delivers the next ones
while an image is being encoded. Only what is known at once is returned.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from florence2.contract import VISION
from florence2.engine.metrics import ENCODER_METRICS
from florence2.triton import adapter
from florence2.triton.admission import Tickets, fingerprint
from florence2.triton.cache import DEFAULT_MIB, FEATURES_VARIABLE, Cache
from florence2.triton.encoder import Encoder, Outcome
from florence2.triton.onnx_session import Arrays, open_session


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
        self.warm_ups = sum(sample.get("count") or 1 for sample in config.get("model_warmup", []))
        batch = config["max_batch_size"] if self.batches and "dynamic_batching" in config else 1
        self.tickets: Tickets | None = None
        if self.inputs == [tensor.name for tensor in VISION.inputs]:
            self.tickets = Tickets.of_this_server()
            cache: Cache[Arrays] = Cache.of_this_server(FEATURES_VARIABLE, DEFAULT_MIB)
            on_cpu = {"model": args["model_name"], "device": "cpu"}  # what torch need not be imported for
            endpoint = adapter.MetricsEndpoint(
                ENCODER_METRICS, on_cpu if gpu is None else adapter.Arguments(args).labels
            )
            self.encoder = Encoder(self.session, batch, cache, endpoint.publish)
        else:  # another ONNX model: nothing is known of its outputs, and it has no metrics of ours
            self.encoder = Encoder(self.session, batch, Cache(0))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.start(request) for request in requests]

    def start(self, request: Any) -> Any:
        """Return the response if there is one at once, else None: the encoder's thread will send it."""
        wanted, sender = request.requested_output_names(), request.get_response_sender()
        try:
            inputs = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            if self.warm_ups:  # Triton's own, before any other request: neither counted nor kept
                self.warm_ups -= 1
                return adapter.response(dict(self.session.run(inputs)), wanted)
            outputs = self.submit(inputs, functools.partial(send, sender, wanted))
            return None if outputs is None else adapter.response(dict(outputs), wanted)
        except Exception as error:
            return adapter.error_response(error)

    def submit(self, inputs: Arrays, answer: Callable[[Outcome], None]) -> Arrays | None:
        images = len(inputs[self.inputs[0]]) if self.batches else 1
        if self.tickets is None:
            return self.encoder.submit(object(), inputs, answer, images)
        (pixels,) = inputs.values()
        found = fingerprint(pixels)
        allowed = functools.partial(self.tickets.may_encode, found)
        return self.encoder.submit((pixels.shape, found), inputs, answer, images, allowed)

    def finalize(self) -> None:
        self.encoder.stop()


def send(sender: Any, wanted: list[str], outcome: Outcome) -> None:
    """Send the only response to a request, whatever happened: without one its client would wait forever."""
    try:
        message = (
            adapter.error_response(outcome)
            if isinstance(outcome, Exception)
            else adapter.response({name: np.ascontiguousarray(array) for name, array in outcome.items()}, wanted)
        )
    except Exception as error:
        message = adapter.error_response(error)
    sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
