"""What the tools for agents read; tests/live/client/test_mcp.py calls them."""

from __future__ import annotations

import asyncio
import os

import pytest

from florence2.errors import InvalidImage


def test_a_pipe_is_not_waited_for(tmp_path):
    tools = pytest.importorskip("florence2_client.gateway.tools")
    toolbox = tools.Toolbox(None, [], None, 5.0)
    toolbox._images = object()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InvalidImage, match="is not a regular file"):
        asyncio.run(toolbox._read(str(tmp_path / "pipe.png")))
