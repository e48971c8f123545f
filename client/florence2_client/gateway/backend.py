"""What the gateway's APIs share: connections to the server's models, and to where images are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from florence2.errors import Cancelled, ModelNotFound
from florence2_client.async_client import AsyncClient
from florence2_client.gateway.images import ImageSource

T = TypeVar("T")


@dataclass(frozen=True)
class Backend:
    """The models by the names that requests have for them, and their images. `timeout`: seconds for a request."""

    clients: Mapping[str, AsyncClient]
    images: ImageSource
    timeout: float

    def client(self, model: str) -> AsyncClient:
        """Return the client of a model. Raise ModelNotFound if there is none of this name."""
        found = self.clients.get(model.removesuffix("_ensemble"))
        if found is None:
            raise ModelNotFound(f"there is no model {model[:80]!r}; the models are {', '.join(self.clients)}")
        return found


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what the work returns; cancel it, and with it the server's work, when the client disconnects."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_departure(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client disconnected")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
