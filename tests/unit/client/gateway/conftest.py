"""A gateway in front of a fake model, which answers each task as the test says."""

from __future__ import annotations

import base64
import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from florence2_client.gateway import app as app_module
from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.transports.base import REQUEST_HEADERS
from tests.unit.client.fake_transport import outputs

SIZE = (200, 100)


class Model:
    """Take the place of the transport, and keep what is sent.

    `answers`: task, or (task, text) -> the answer as JSON, or an error. `parts`: the texts and finish reasons of a
    stream; an error in place of a text ends it.
    """

    def __init__(self):
        self.answers, self.parts = {}, []
        self.sent, self.headers = [], []

    @property
    def asked(self):
        """Return the task and text of each request."""
        return [(sent["TASK"].decode(), sent["TEXT"].decode() if "TEXT" in sent else None) for _, sent in self.sent]

    def receive(self, model, tensors):
        """Keep a request, and return its task and text."""
        self.sent.append((model, {name: tensor[0] for name, tensor in tensors.items()}))
        self.headers.append(dict(REQUEST_HEADERS.get()))
        return self.asked[-1]

    async def infer(self, model, tensors, timeout):
        task, text = self.receive(model, tensors)
        return response(task, self.answers[(task, text) if (task, text) in self.answers else task])

    async def stream(self, model, tensors, timeout):
        task, _ = self.receive(model, tensors)
        for text, finish_reason in self.parts:
            yield response(task, text, finish_reason)

    async def close(self):
        pass


def response(task, answer, finish_reason="stop"):
    """Return the outputs for an answer, or raise it if it is an error."""
    if isinstance(answer, Exception):
        raise answer
    return outputs(
        task,
        answer,
        FINISH_REASON=np.array([finish_reason.encode()], dtype=object),
        IMAGE_SIZE=np.array(SIZE, dtype=np.int32),
        NUM_PROMPT_TOKENS=np.array([590], dtype=np.int32),
        TOKEN_LOG_PROBS=np.array([b'[["a", -0.5]]'], dtype=object),
    )


@pytest.fixture
def model(monkeypatch):
    fake = Model()
    monkeypatch.setattr(app_module, "open_async_transport", lambda address: fake)
    return fake


@pytest.fixture
def open_gateway(model):
    """Return a function that opens a gateway with options; `lines` of its client are those of the access log."""
    with contextlib.ExitStack() as stack:

        def start(**options):
            lines = []
            app = make_app(GatewayOptions(**options), lines.append)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            client.lines = lines
            return client

        yield start


@pytest.fixture
def label_studio(open_gateway, image_url):
    """Return a function that sends tasks to Label Studio's route for predictions."""
    client = open_gateway()

    def send(config, *data, context=None, status=200):
        tasks = [{"id": number, "data": each} for number, each in enumerate(data or ({"image": image_url},))]
        body = {"tasks": tasks, "label_config": config, "project": "1.1", "params": {"context": context}}
        answer = client.post("/label-studio/predict", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    return send


@pytest.fixture(scope="session")
def image_url():
    buffer = io.BytesIO()
    Image.new("RGB", SIZE).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
