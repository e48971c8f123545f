"""The tasks as tools of the Model Context Protocol, for agents: `florence2 mcp`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import Field
from starlette.applications import Starlette

from florence2 import __version__
from florence2.answers import TextAnswer
from florence2.errors import Florence2Error, InvalidImage
from florence2.images import encoded_image
from florence2.tasks import TASKS, Grammar, Task, TaskInput
from florence2_client.async_client import AsyncClient
from florence2_client.gateway.chat import content_of
from florence2_client.gateway.images import ImageSource
from florence2_client.images import read_bytes
from florence2_client.result import Result
from florence2_client.tasks import Prompt

INSTRUCTIONS = (
    "Florence-2 looks at images: it describes them, finds and outlines objects, and reads text. Coordinates are pixels "
    "of the image, from its upper left corner. Tools that locate something also return the image with the answer drawn "
    "on it."
)
LONGEST_SIDE = 1024  # pixels of a drawing: agents pay for each
SCHEMES = ("http:", "https:", "data:")

Image = Annotated[str, Field(description="the path of a file, an https URL, a data: URL, or base64")]
Phrase = Annotated[str, Field(description="the phrase or caption, in words")]
Box = Annotated[
    list[float], Field(description="the region: x1, y1, x2, y2 in pixels of the image", min_length=4, max_length=4)
]
Answered = Coroutine[Any, Any, CallToolResult]


class Toolbox:
    """The tools, and the connections that they share.

    `files`: folders whose files may be named by path; None is every file that this user can read, for a server that
    only its own user can reach.
    """

    def __init__(self, client: AsyncClient, hosts: Sequence[str], files: Sequence[Path] | None, timeout: float) -> None:
        """`hosts`: see `ImageSource`. `timeout`: seconds for a request."""
        self._client = client
        self._hosts = hosts
        self._files = None if files is None else [folder.resolve() for folder in files]
        self._timeout = timeout
        self._images: ImageSource | None = None

    def server(self) -> MCPServer[None]:
        """Return the MCP server with a tool for each task, and one for the prompts of fine-tunes."""
        server: MCPServer[None] = MCPServer(
            "florence2", title="Florence-2", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING",
            lifespan=self._lifespan,
        )  # fmt: skip
        looks_only = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
        for task in TASKS.values():
            server.add_tool(
                self._tool(task), name=task.name, description=f"Answer with {task.summary}.", annotations=looks_only
            )
        server.add_tool(
            self._prompt, name="run_prompt", annotations=looks_only,
            description="Send a prompt of your own to a fine-tuned Florence-2; answers with the text it generates.",
        )  # fmt: skip
        return server

    def http_app(self, host: str, body_bytes: int) -> Starlette:
        """Return the server as an ASGI application with the route `/mcp`. `host`: the address that it listens on."""
        return self.server().streamable_http_app(host=host, max_request_body_size=body_bytes)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _server: MCPServer[None]) -> AsyncIterator[None]:
        async with ImageSource(self._hosts) as self._images, self._client:
            yield

    def _tool(self, task: Task) -> Callable[..., Answered]:
        """Return the function of a task. The SDK reads the arguments' types from its signature."""

        async def plain(image: Image) -> CallToolResult:
            return await self._answer(image, task.token, None)

        async def with_text(image: Image, text: Phrase) -> CallToolResult:
            return await self._answer(image, task.token, text)

        async def with_region(image: Image, box: Box) -> CallToolResult:
            return await self._answer(image, task.token, box)

        shapes: dict[TaskInput, Callable[..., Answered]] = {
            TaskInput.NONE: plain, TaskInput.TEXT: with_text, TaskInput.REGION: with_region,
        }  # fmt: skip
        return shapes[task.input]

    async def _prompt(
        self, image: Image, prompt: Annotated[str, Field(description="the whole prompt")]
    ) -> CallToolResult:
        return await self._answer(image, Prompt(prompt), None)

    async def _answer(self, image: str, task: str, text: Any) -> CallToolResult:
        try:
            encoded = await self._read(image)
            result = await self._client.run(encoded, task, text, timeout=self._timeout)
            drawing = await asyncio.to_thread(_drawing, result, encoded)
        except Florence2Error as error:
            raise ToolError(str(error)) from error
        return CallToolResult(
            content=[TextContent(type="text", text=content_of(result)), *drawing], structured_content=result.to_dict()
        )

    async def _read(self, image: str) -> bytes:
        """Return the encoded bytes of an image. Raise InvalidImage if it cannot be read, or must not be."""
        assert self._images is not None
        if image.lower().startswith(SCHEMES):
            return await self._images.read(image)
        path = Path(image) if len(image) < 4096 and "\0" not in image else None
        try:
            exists = path is not None and path.exists()
        except OSError:  # a name longer than any file's
            exists = False
        if path is None or not exists:
            with contextlib.suppress(InvalidImage):
                if (decoded := encoded_image(image.encode("utf-8", "replace"))) != image.encode("utf-8", "replace"):
                    return decoded
            raise InvalidImage(f"there is no file {image[:120]!r}, and it is neither a URL nor base64")
        if not path.is_file() and not path.is_dir():  # to read a pipe could take forever
            raise InvalidImage(f"{image[:120]!r} is not a regular file")
        if self._files is not None and not any(path.resolve().is_relative_to(folder) for folder in self._files):
            raise InvalidImage("the server may not read this file; send the image as a data: URL")
        return await asyncio.to_thread(read_bytes, path)


def _drawing(result: Result[Any], encoded: bytes) -> list[ImageContent]:
    """Return the image with the answer drawn on it, if the answer locates something."""
    task = TASKS.get(result.task)
    if (isinstance(result.answer, TextAnswer) and (task is None or task.grammar is Grammar.TEXT)) or not result.objects:
        return []
    drawn = result.draw(encoded)
    drawn.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=85)
    return [ImageContent(type="image", data=base64.b64encode(buffer.getvalue()).decode(), mime_type="image/jpeg")]
