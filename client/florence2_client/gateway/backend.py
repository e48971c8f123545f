"""What the gateway's APIs share: connections to the server's models, and to where images are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from florence2.errors import Cancelled, ModelNotFound
from florence2_client.async_client import AsyncClient
from florence2_client.gateway.images import ImageSource
from florence2_client.result import Result

T = TypeVar("T")


@dataclass(frozen=True)
class Backend:
    """Where images come from, and the models by the names that requests have for them, once the gateway runs.

    `timeout`: seconds for a request.
    """

    images: ImageSource
    timeout: float
    clients: dict[str, AsyncClient] = field(default_factory=dict)

    def client(self, model: str) -> AsyncClient:
        """Return the client of a model. Raise ModelNotFound if there is none of this name."""
        found = self.clients.get(model.removesuffix("_ensemble"))
        if found is None:
            raise ModelNotFound(f"there is no model {model[:80]!r}; the models are {', '.join(self.clients)}")
        return found


def count_tokens(state: dict[str, Any], results: Iterable[Result[Any]]) -> None:
    """Add the tokens of results to the state of a request, for its log and the metrics."""
    counted = state.setdefault("tokens", {"prompt": 0, "completion": 0})
    for result in results:
        counted["prompt"] += result.num_prompt_tokens or 0
        counted["completion"] += result.num_tokens


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
