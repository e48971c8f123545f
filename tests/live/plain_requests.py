"""Requests with plain tritonclient, as any client may send them."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from florence2.contract import OPTIONS
from tools.toy_model import scenes
from tools.toy_model.answers import Example

SEEDS = (900_001, 900_002)  # no scene of training, evaluation or the demo
TYPES = {option.name: option.type for option in OPTIONS}
DTYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def scene_image(seed: int) -> Image.Image:
    return scenes.make_scene(seed).draw(320)


def examples(seed: int) -> dict[str, Example]:
    return scenes.make_examples(scenes.make_scene(seed), seed)


def tensor(name: str, value, datatype: str) -> triton.InferInput:
    array = np.array([value], DTYPES[datatype])
    item = triton.InferInput(name, [1], datatype)
    item.set_data_from_numpy(array)
    return item


def ask(server, image: bytes, task: str | bytes, text: str | None = None, timeout: int | None = None, **options):
    """Send one request to the ensemble, and return the outputs by name."""
    inputs = [tensor("IMAGE", image, "BYTES"), tensor("TASK", task, "BYTES")]
    inputs += [tensor("TEXT", text, "BYTES")] if text is not None else []
    inputs += [tensor(name, value, TYPES[name]) for name, value in options.items()]
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        answer = client.infer("florence2_ensemble", inputs, client_timeout=60, timeout=timeout)
    names = [output.name for output in answer.get_response().outputs]
    return {name: answer.as_numpy(name)[0 if name != "IMAGE_SIZE" else slice(None)] for name in names}


def refused(server, *args, **options) -> tuple[str, str]:
    """Return the status and message of a request that must fail."""
    with pytest.raises(InferenceServerException) as caught:
        ask(server, *args, **options)
    return caught.value.status(), caught.value.message()


def call(server, model: str, tensors: dict[str, np.ndarray], outputs: list[str] | None = None):
    """Send any tensors to a model, and return the outputs by name, or the status and message of the error."""
    inputs = []
    for name, array in tensors.items():
        datatype = next(kind for kind, dtype in DTYPES.items() if np.dtype(dtype) == array.dtype)
        inputs.append(triton.InferInput(name, array.shape, datatype).set_data_from_numpy(array))
    asked = [triton.InferRequestedOutput(name) for name in outputs or []]
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        try:
            answer = client.infer(model, inputs, outputs=asked or None, client_timeout=60)
        except InferenceServerException as error:
            return error.status().removeprefix("StatusCode."), error.message()
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


GOOD = png(scenes.make_scene(SEEDS[0]).draw(64))  # a small image
PLAIN = {"IMAGE": np.array([GOOD], np.object_), "TASK": np.array(["<OD>"], np.object_)}
LIMIT = {"MAX_NEW_TOKENS": np.array([8], np.int32)}
