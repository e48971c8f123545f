"""A fake server and an image for the commands."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.unit.client.cli.fake_server import FakeServer


@pytest.fixture
def server(monkeypatch):
    fake = FakeServer()
    monkeypatch.setattr("florence2_client.client.open_transport", fake.open)
    return fake


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 30), "gray").save(path)
    return str(path)
