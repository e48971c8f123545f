"""A gateway in front of a model of the test's own, which answers each task as the test says."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from florence2_client.gateway import app as app_module
from florence2_client.gateway.app import GatewayOptions, make_app

SIZE = (200, 100)


class Model:
    """Takes the place of the transport. `answers`: task, or (task, text) -> answer as JSON, or an error."""

    def __init__(self):
        self.answers, self.asked = {}, []

    async def infer(self, model, tensors, timeout):
        task, text = (tensors[name][0].decode() if name in tensors else None for name in ("TASK", "TEXT"))
        self.asked.append((task, text))
        answer = self.answers.get((task, text), self.answers.get(task))
        if isinstance(answer, Exception):
            raise answer
        return {
            "RESULT": np.array([json.dumps({task: answer}).encode()], dtype=object),
            "GENERATED_TEXT": np.array([b"as generated"], dtype=object),
            "FINISH_REASON": np.array([b"stop"], dtype=object),
            "NUM_TOKENS": np.array([7], dtype=np.int32),
            "SEQUENCE_SCORE": np.array([-0.25], dtype=np.float32),
            "IMAGE_SIZE": np.array(SIZE, dtype=np.int32),
            "NUM_PROMPT_TOKENS": np.array([590], dtype=np.int32),
            "TOKEN_LOG_PROBS": np.array([b'[["a", -0.5]]'], dtype=object),
        }

    async def close(self):
        pass


@pytest.fixture
def model(monkeypatch):
    fake = Model()
    monkeypatch.setattr(app_module, "open_async_transport", lambda address: fake)
    return fake


@pytest.fixture
def labeling(model):
    """Return a function that opens a gateway with options."""
    opened = []

    def start(log=None, **options):
        opened.append(TestClient(make_app(GatewayOptions(**options), log), raise_server_exceptions=False))
        return opened[-1].__enter__()

    yield start
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def label_studio(labeling, image_url):
    """Return a function that asks Label Studio's routes for predictions."""
    client = labeling()

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
