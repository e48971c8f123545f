"""A fake server and a folder of images for `florence2 batch`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.client.cli.batch.runs import FakeServer


@pytest.fixture
def server(monkeypatch):
    fake = FakeServer()
    monkeypatch.setattr("florence2_client.async_client.open_async_transport", lambda address: fake)
    return fake


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with images/0.png to images/4.png."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in range(5):
        Image.new("RGB", (40, 50), (number, 0, 0)).save(f"images/{number}.png")
    return tmp_path
