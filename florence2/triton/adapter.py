"""The adapter between Triton's Python backend and the domain: tensors, responses, errors and metrics.

Every model.py in the model repository is written with it. Only this module and `onnxruntime_backend` know `pb_utils`.
At import time only constants of `pb_utils` may be touched: it is incomplete while Triton completes configurations.
"""

from __future__ import annotations

import difflib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from florence2 import errors
from florence2.config import ModelConfig
from florence2.contract import INPUTS, OPTIONS, GenerationOptions
from florence2.engine.beam import Generation
from florence2.engine.metrics import Kind, Metric, Sample, Series
from florence2.prompts import MAX_CHARACTERS
from florence2.triton.admission import NO_TICKET, Tickets

MAX_TEXT_BYTES = 4 * MAX_CHARACTERS  # a character takes at most four in UTF-8
Outputs = dict[str, np.ndarray]
T = TypeVar("T")


class Arguments:
    """The arguments of `TritonPythonModel.initialize`."""

    def __init__(self, args: dict[str, str]) -> None:
        self.directory = Path(args["model_repository"]) / args["model_version"]
        self.device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.model = args["model_name"]
        config = json.loads(args["model_config"])
        self.streams: bool = pb_utils.using_decoupled_model_transaction_policy(config)
        self._parameters = config.get("parameters", {})

    @property
    def labels(self) -> dict[str, str]:
        """Return what all metrics of this process are labeled with."""
        from florence2.engine.device import device_labels  # imports torch, which most models do without

        return {"model": self.model, **device_labels(self.device)}

    def integer(self, name: str) -> int:
        """Return a parameter of config.pbtxt."""
        return int(self._parameters[name]["string_value"])


def array(request: Any, name: str, most: int | None = None) -> np.ndarray | None:
    """Return a private copy of an input tensor, or None if the request leaves it out.

    Raises InvalidRequest if it has more than `most` elements: clients can call each model by itself, and one huge
    tensor must not keep the others waiting.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    value = None if tensor is None else tensor.as_numpy()
    if most is not None and value is not None and value.size > most:
        raise errors.InvalidRequest(f"{name} has {value.size:,} elements; at most {most:,} are accepted")
    return value


def required(request: Any, name: str, most: int | None = None) -> np.ndarray:
    """Return a private copy of an input tensor. Raises InvalidRequest as `array` does, or if it is left out."""
    return _present(array(request, name, most), name)


def required_scalar(request: Any, name: str) -> Any:
    """Return the only element of an input tensor. Raises InvalidRequest if there is none, or more than one."""
    return _present(scalar(request, name), name)


def required_text(request: Any, name: str) -> str:
    """Return the only element of a STRING tensor, decoded. Raises InvalidRequest if the request leaves it out."""
    return _present(text(request, name), name)


def _present(value: T | None, name: str) -> T:
    if value is None:
        raise errors.InvalidRequest(f"{name} is missing")
    return value


def scalar(request: Any, name: str) -> Any:
    """Return the only element of an input tensor as a Python value, or None if the request leaves it out."""
    value = array(request, name)
    if value is None:
        return None
    if value.size != 1:
        raise errors.InvalidRequest(f"{name} must have one element, not {value.size}")
    return value.reshape(-1)[0].item() if value.dtype != np.object_ else value.reshape(-1)[0]


def text(request: Any, name: str) -> str | None:
    """Return the only element of a STRING tensor, decoded, or None if the request leaves it out."""
    value = scalar(request, name)
    if value is None or isinstance(value, str):
        return value
    if len(value) > MAX_TEXT_BYTES:
        raise errors.InvalidPrompt(f"{name} has {len(value):,} bytes; at most {MAX_TEXT_BYTES:,} are accepted")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.InvalidPrompt(f"{name} is not valid UTF-8") from error


def generation_options(request: Any, config: ModelConfig, *, greedy: bool = False) -> GenerationOptions:
    """Return the options of a request. Raises InvalidOption, in a `greedy` model also on more than one beam."""
    given = {option.keyword: scalar(request, option.name) for option in OPTIONS}
    if greedy:
        if given["num_beams"] not in (None, 1):
            raise errors.InvalidOption(
                f"a streamed answer has one beam; leave NUM_BEAMS out or set it to 1, not {given['num_beams']}"
            )
        given["num_beams"] = 1
    return config.generation_options(**given)


def generation_tensors(generation: Generation) -> Outputs:
    """Return the decoder's outputs for an answer, complete or not."""
    return {
        "TOKENS": np.array(generation.tokens, np.int32),
        "LOG_PROBS": np.array(generation.log_probs, np.float32),
        "LOG_MASSES": np.array(generation.log_masses, np.float32),
        "FINISH_REASON": strings(generation.finish_reason),
        "NUM_TOKENS": np.array([len(generation.tokens)], np.int32),
        "SEQUENCE_SCORE": np.array([generation.score], np.float32),
    }


def require_no_parameters(request: Any) -> None:
    """Raise InvalidRequest on a parameter. Triton's `generate` makes one of every key that names no input."""
    for name in json.loads(request.parameters() or "{}"):
        if name in ("id", "stream") or name.startswith("triton_"):  # Triton's own
            continue
        inputs = [tensor.name for tensor in INPUTS]
        close = difflib.get_close_matches(name[:40].upper().replace("-", "_"), inputs, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the inputs are {', '.join(inputs)}"
        raise errors.InvalidRequest(f"there is no input {name[:40]!r}; {hint}")


def strings(*values: str) -> np.ndarray:
    """Return an array for a STRING tensor."""
    return np.array([value.encode("utf-8") for value in values], dtype=np.object_)


def respond_to_each(requests: list[Any], function: Callable[[Any], Outputs]) -> list[Any]:
    """Return one response per request, for `execute` of a model in default mode; a failure costs no other request."""

    def respond(request: Any) -> Any:
        try:
            return response(function(request), request.requested_output_names())
        except Exception as error:  # of this request only
            return error_response(error)

    return [respond(request) for request in requests]


def response(outputs: Outputs, wanted: list[str]) -> Any:
    """Return a response with the outputs that the client wants; no names means all.

    Triton 24.10 would leave out the others itself, but in `send()` and without holding the GIL.
    """
    tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items() if not wanted or name in wanted]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def error_response(error: Exception) -> Any:
    """Return the response for an error: `CODE: sentence`. Details of an unexpected error go to the log only."""
    if not isinstance(error, errors.Florence2Error):
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        error = errors.InternalError("the server failed on this request; see its log")
    # The Python backend's constants are named after the statuses, but for one.
    status = getattr(pb_utils.TritonError, error.status.removesuffix("UMENT"))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.wire_message, status))


def timeout(request: Any) -> float:
    """Return the seconds that the client allows for the request, infinity if it does not say."""
    return (request.timeout() or math.inf) / 1e6  # it is in microseconds, 0 for none


class Reply:
    """Respond to a request after `execute` has returned None for it.

    `is_cancelled` after the final response crashes the whole server (Triton 24.10), so one thread makes all calls. The
    final response gives the request's ticket back. Its time limits count from when the ticket was taken.
    """

    def __init__(self, request: Any, tickets: Tickets) -> None:
        self._sender = request.get_response_sender()
        self._wanted = request.requested_output_names()
        self._tickets, self._ticket = tickets, NO_TICKET
        self.deadline = self.start_by = math.inf  # of time.monotonic()

    def enter(self, request: Any) -> None:
        """Note that the request has arrived. Raises QueueFull if it comes without a ticket and finds no room."""
        longest = timeout(request)
        entry = self._tickets.enter(scalar(request, "TICKET") or NO_TICKET, longest)
        self._ticket = entry.ticket
        self.deadline = time.monotonic() + longest - entry.age
        self.start_by = time.monotonic() + entry.start_within

    def is_cancelled(self) -> bool:
        """Return whether the client cancelled the request. Never call it after the final response."""
        return bool(self._sender.is_cancelled())

    def send_so_far(self, outputs: Outputs) -> None:
        """Send one of the many responses of a streamed answer. Never call it after the final response."""
        self._sender.send(response(outputs, self._wanted))

    def send(self, outputs: Outputs) -> None:
        """Send the final response, or an error if the outputs do not make one: every request needs a response."""
        try:
            message = response(outputs, self._wanted)
        except Exception as error:
            message = error_response(error)
        self._send_final(message, answered=True)

    def fail(self, error: Exception) -> None:
        """Send an error as the final response."""
        self._send_final(error_response(error))

    def _send_final(self, message: Any, *, answered: bool = False) -> None:
        try:
            self._sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        finally:
            if self._ticket:
                self._tickets.give_back(self._ticket, answered=answered)


class MetricsEndpoint:
    """Publish what a model counts on the server's own metrics endpoint. Keep it for the life of the process.

    A garbage-collected metric takes its series away, and another one with the same name and labels, even in another
    process, would go on writing to freed memory (Triton 24.10). So each is made once, is kept, and has its process's
    `labels`, which are `Arguments.labels`.

    `tickets`: whose counts are published too. They belong to the whole server, so only one model passes them.
    """

    def __init__(self, table: Iterable[Metric], labels: Mapping[str, str], tickets: Tickets | None = None) -> None:
        self._labels, self._tickets = labels, tickets
        self._series: dict[Series, Any] = {}
        try:
            self._families = {
                metric: pb_utils.MetricFamily(
                    name=metric.name, description=metric.help, kind=getattr(pb_utils.MetricFamily, metric.kind.name)
                )
                for metric in table
            }
        except pb_utils.TritonModelException as error:
            self._families = {}
            pb_utils.Logger.log_warn(f"this model publishes no metrics: {error}")  # `--allow-metrics=false`

    def publish(self, samples: list[Sample]) -> None:
        """Write samples to the endpoint. Each takes 20 to 65 µs, so never call it in a thread that computes."""
        for series, value in samples + (self._tickets.samples() if self._tickets else []):
            if series.metric not in self._families:
                continue
            if series not in self._series:
                labels = {**self._labels, **dict(zip(series.metric.labels, series.labels, strict=True))}
                buckets = {"buckets": list(series.metric.buckets)} if series.metric.buckets else {}
                self._series[series] = self._families[series.metric].Metric(labels=labels, **buckets)
            line = self._series[series]
            match series.metric.kind:
                case Kind.COUNTER:
                    line.increment(value)
                case Kind.GAUGE:
                    line.set(value)
                case Kind.HISTOGRAM:
                    line.observe(value)
