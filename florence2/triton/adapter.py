"""Between Triton's Python backend and the domain: tensors in and out, and errors. Beside `onnxruntime_backend` no
module knows pb_utils.

The model.py of every Python model in the repository is written with these. Nothing of pb_utils but constants may be
touched at import time: it is incomplete while Triton completes configurations.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from florence2 import errors
from florence2.config import ModelConfig
from florence2.contract import OPTIONS, GenerationOptions
from florence2.engine.metrics import Kind, Metric, Sample, Series
from florence2.triton.admission import NO_TICKET, Tickets

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

    def integer(self, name: str) -> int:
        """A parameter of config.pbtxt."""
        return int(self._parameters[name]["string_value"])


def array(request: Any, name: str) -> np.ndarray | None:
    """A private copy of an input tensor; None if the request leaves it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def required(request: Any, name: str) -> np.ndarray:
    return _present(array(request, name), name)


def required_scalar(request: Any, name: str) -> Any:
    return _present(scalar(request, name), name)


def required_text(request: Any, name: str) -> str:
    return _present(text(request, name), name)


def _present(value: T | None, name: str) -> T:
    if value is None:
        raise errors.InvalidRequest(f"{name} is missing")
    return value


def scalar(request: Any, name: str) -> Any:
    """The only element of an input tensor as a Python value; None if the request leaves it out."""
    value = array(request, name)
    if value is None:
        return None
    if value.size != 1:
        raise errors.InvalidRequest(f"{name} must have one element, not {value.size}")
    return value.reshape(-1)[0].item() if value.dtype != np.object_ else value.reshape(-1)[0]


def text(request: Any, name: str) -> str | None:
    """A STRING tensor's only element, decoded; None if the request leaves it out."""
    value = scalar(request, name)
    if value is None or isinstance(value, str):
        return value
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


def strings(*values: str) -> np.ndarray:
    """An array for a STRING tensor."""
    return np.array([value.encode("utf-8") for value in values], dtype=np.object_)


def answer_all(requests: list[Any], function: Callable[[Any], Outputs]) -> list[Any]:
    """Default-mode models: one response per request, and a request that fails costs no other its answer."""
    return [_attempt(request, function) for request in requests]


def _attempt(request: Any, function: Callable[[Any], Outputs]) -> Any:
    try:
        return response(function(request), request.requested_output_names())
    except Exception as error:  # per request: its neighbours must survive
        return error_response(error)


def response(outputs: Outputs, wanted: list[str]) -> Any:
    """Unrequested outputs are left out here: Triton 24.10 does that in `send()` without holding the GIL."""
    tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items() if not wanted or name in wanted]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def error_response(error: Exception) -> Any:
    """A Florence2Error says its sentence; anything else is logged, and the caller learns only that it is our fault."""
    if not isinstance(error, errors.Florence2Error):
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        error = errors.InternalError("the server failed on this request; see its log")
    # The Python backend's constants are named after the statuses, but for one.
    status = getattr(pb_utils.TritonError, error.status.removesuffix("UMENT"))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.wire_message, status))


class Reply:
    """The way to answer a request after `execute` returned None.

    `is_cancelled` after the answer kills the whole server (Triton 24.10), so the one who answers must be the last user.
    The answer gives the request's ticket back, and its time limit counts from when the ticket was taken.
    """

    def __init__(self, request: Any, tickets: Tickets) -> None:
        self._sender = request.get_response_sender()
        self._wanted = request.requested_output_names()
        self._tickets, self._ticket = tickets, scalar(request, "TICKET") or NO_TICKET
        age = tickets.arrive(self._ticket) if self._ticket else 0.0
        timeout = request.timeout()  # microseconds, 0 for none
        self.deadline = time.monotonic() + timeout / 1e6 - age if timeout else float("inf")

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

    def send_so_far(self, outputs: Outputs) -> None:
        """One of many responses, of a model that streams. Not after the answer."""
        self._sender.send(response(outputs, self._wanted))

    def send(self, outputs: Outputs) -> None:
        """Answers; with an error if the outputs do not make a response, since nobody may be left without any."""
        try:
            message = response(outputs, self._wanted)
        except Exception as error:
            message = error_response(error)
        self._send(message)

    def fail(self, error: Exception) -> None:
        self._send(error_response(error))

    def _send(self, message: Any) -> None:
        try:
            self._sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        finally:
            if self._ticket:
                self._tickets.give_back(self._ticket)


class MetricsEndpoint:
    """Publishes what the decoder counts on the server's own metrics endpoint. Keep it for the life of the process.

    A metric that is collected as garbage takes its series away, and another one of the same name and labels, even of
    another process, would go on writing where it was (Triton 24.10). So each is made once, kept, and has a `model`.
    `tickets`: whose counts go along; they are the whole server's, so for one model alone.
    """

    def __init__(self, table: Iterable[Metric], model: str, tickets: Tickets | None = None) -> None:
        self._model, self._tickets = model, tickets
        self._series: dict[Series, Any] = {}
        try:
            self._families = {metric: _family(metric) for metric in table}
        except pb_utils.TritonModelException as error:
            self._families = {}
            pb_utils.Logger.log_warn(f"no metrics of the decoder: {error}")  # `--allow-metrics=false`

    def publish(self, samples: list[Sample]) -> None:
        """Each sample is a call of 20 to 65 µs, so not for the engine's thread."""
        for series, value in samples + (self._tickets.samples() if self._tickets else []):
            if series.metric in self._families:
                self._write(series, value)

    def _write(self, series: Series, value: float) -> None:
        if series not in self._series:
            self._series[series] = self._new(series)
        line = self._series[series]
        match series.metric.kind:
            case Kind.COUNTER:
                line.increment(value)
            case Kind.GAUGE:
                line.set(value)
            case Kind.HISTOGRAM:
                line.observe(value)

    def _new(self, series: Series) -> Any:
        labels = {"model": self._model, **dict(zip(series.metric.labels, series.labels, strict=True))}
        buckets = {"buckets": list(series.metric.buckets)} if series.metric.buckets else {}
        return self._families[series.metric].Metric(labels=labels, **buckets)


def _family(metric: Metric) -> Any:
    kind = getattr(pb_utils.MetricFamily, metric.kind.name)
    return pb_utils.MetricFamily(name=metric.name, description=metric.help, kind=kind)
