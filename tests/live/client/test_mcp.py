"""The tools for agents, used by the MCP SDK's own client over standard input and output, and over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import mcp
import pytest
from PIL import Image

from florence2.server.embedded import EmbeddedServer
from florence2.tasks import TASKS
from florence2_client import Client

SCENE = Path(__file__).parents[3] / "demo/images/scene.png"
PROGRAM = str(Path(sys.executable).with_name("florence2"))


def talk(server, conversation):
    async def run():
        async with mcp.Client(server) as agent:
            return await conversation(agent)

    return asyncio.run(run())


def over_stdio(server, *flags):
    return mcp.StdioServerParameters(command=PROGRAM, args=["mcp", "--url", server.grpc_url, *flags])


def words(answer):
    return answer.content[0].text


def test_an_agent_finds_a_tool_for_each_task_and_calls_them(server: EmbeddedServer):
    async def conversation(agent):
        tools = (await agent.list_tools()).tools
        detected = await agent.call_tool("od", {"image": str(SCENE)})
        caption = await agent.call_tool("caption", {"image": base64.b64encode(SCENE.read_bytes()).decode()})
        found = await agent.call_tool("open_vocabulary_detection", {"image": str(SCENE), "text": "the purple star"})
        box = {"image": str(SCENE), "box": [60, 175, 295, 455]}
        region = await agent.call_tool("region_to_category", box)
        prompt = await agent.call_tool("run_prompt", {"image": str(SCENE), "prompt": "What is the text in the image?"})
        return tools, detected, caption, found, region, prompt

    tools, detected, caption, found, region, prompt = talk(over_stdio(server), conversation)
    assert {tool.name for tool in tools} == {task.name for task in TASKS.values()} | {"run_prompt"}
    by_name = {tool.name: tool.input_schema for tool in tools}
    assert by_name["od"]["required"] == ["image"] and by_name["region_to_category"]["required"] == ["image", "box"]
    assert by_name["region_to_category"]["properties"]["box"]["maxItems"] == 4
    with Client(server.grpc_url) as client:
        expected = client.detect(SCENE)
    assert detected.structured_content["answer"] == expected.answer.to_json()
    drawing = Image.open(io.BytesIO(base64.b64decode(detected.content[1].data)))
    assert detected.content[1].mime_type == "image/jpeg" and drawing.size == expected.image_size
    assert words(caption) == "a purple star and a green triangle with the text HELLO and TRITON"
    assert len(caption.content) == 1  # nothing to draw
    assert found.structured_content["answer"]["bboxes_labels"] == ["the purple star"] and len(found.content) == 2
    assert words(region) == "star" and words(prompt) == "HELLO TRITON"


def test_mistakes_are_told_to_the_agent_in_a_sentence(server, tmp_path):
    (tmp_path / "note.txt").write_text("not an image")

    async def conversation(agent):
        calls = [
            ("od", {"image": str(tmp_path / "none.png")}), ("od", {"image": str(tmp_path / "note.txt")}),
            ("od", {"image": "https://example.com/a.png"}), ("od", {"image": "http://127.0.0.1/a.png"}),
            ("od", {"image": "data:image/png;base64,!"}), ("od", {"image": "x" * 5000}),
            ("region_to_category", {"image": str(SCENE), "box": [1, 2, 3]}), ("od", {}),
            ("open_vocabulary_detection", {"image": str(SCENE), "text": " "}),
        ]  # fmt: skip
        return [await agent.call_tool(name, arguments) for name, arguments in calls]

    answers = talk(over_stdio(server), conversation)
    assert all(answer.is_error for answer in answers)
    assert "there is no file" in words(answers[0]) and "not fetched" in words(answers[2])
    assert not any("Traceback" in words(answer) for answer in answers)


@pytest.fixture
def over_http(server: EmbeddedServer, tmp_path: Path) -> Iterator[str]:
    """`florence2 mcp --http` with a key and a folder of files that may be named."""
    flags = ["--http", "--port", "0", "--allow-files-from", str(tmp_path), "--url", server.grpc_url]
    environment = {**os.environ, "FLORENCE2_API_KEYS": "a-key"}
    running = subprocess.Popen([PROGRAM, "mcp", *flags], stdout=subprocess.PIPE, text=True, env=environment)
    yield running.stdout.readline().split()[5]
    running.terminate()
    assert running.wait(30) == 0


def test_over_http_a_key_is_needed_and_files_are_limited_to_folders(over_http, tmp_path):
    allowed = tmp_path / "scene.png"
    allowed.write_bytes(SCENE.read_bytes())
    (tmp_path / "link.png").symlink_to(SCENE)
    from mcp.client.streamable_http import streamable_http_client

    async def conversation(agent):
        images = [str(allowed), str(SCENE), str(tmp_path / ".." / SCENE), str(tmp_path / "link.png")]
        return [await agent.call_tool("ocr", {"image": image}) for image in images]

    async def run():
        async with (
            httpx2.AsyncClient(headers={"Authorization": "Bearer a-key"}, timeout=60) as http,
            mcp.Client(streamable_http_client(over_http, http_client=http)) as agent,
        ):
            return await conversation(agent)

    answer, *refused = asyncio.run(run())
    assert words(answer) == "HELLO TRITON"
    assert all(each.is_error and "may not read this file" in words(each) for each in refused)
    assert httpx2.post(over_http, json={}).status_code == 401
