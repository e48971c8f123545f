"""A transport that gives every request the same answer, and the tensors of such an answer."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from florence2_client import Client


def outputs(task="<OD>", answer=None, **changes):
    """Return the ensemble's output tensors for an answer."""
    answer = {"bboxes": [[1.0, 2.0, 3.5, 4.0]], "labels": ["café"], "scores": [0.5]} if answer is None else answer
    result = json.dumps({task: answer}, ensure_ascii=False)
    tensors = {
        "RESULT": np.array([result.encode()], dtype=object),
        "GENERATED_TEXT": np.array(["café<loc_1>".encode()], dtype=object),
        "FINISH_REASON": np.array([b"stop"], dtype=object),
        "NUM_TOKENS": np.array([7], dtype=np.int32),
        "SEQUENCE_SCORE": np.array([-0.25], dtype=np.float32),
        "IMAGE_SIZE": np.array([640, 480], dtype=np.int32),
    }
    return tensors | changes


class FakeTransport:
    """Give every request the same answer, and keep what was sent."""

    def __init__(self, answer=None):
        self.answer = answer or outputs()
        self.asked = []
        self.closed = 0

    def infer(self, model, tensors, timeout):
        self.asked.append((model, tensors, timeout))
        return self.answer

    def close(self):
        self.closed += 1


class AsyncFakeTransport(FakeTransport):
    async def infer(self, model, tensors, timeout):
        return super().infer(model, tensors, timeout)

    async def close(self):
        super().close()


def png(size=(4, 3), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def sent_by(image, task="od", text=None, **options):
    """Return the tensors that a call of `Client.run` sends."""
    transport = FakeTransport()
    Client(transport=transport).run(image, task, text, **options)
    return transport.asked[0][1]
