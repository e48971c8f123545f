"""The gateway: an OpenAI-compatible HTTP API in front of a Florence-2 server.

`read_messages` and `completion` (chat) translate, `ImageSource` (images) fetches, `Guard` (access) limits, `Observer`
(observe) logs and counts. This module connects them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response, StreamingResponse

from florence2 import __version__
from florence2.errors import Florence2Error, InternalError, InvalidRequest
from florence2.tasks import task_from_name
from florence2_client.async_client import AsyncClient
from florence2_client.cli.health import Health, check_health
from florence2_client.gateway.access import NO_LIMITS, Guard, Limits
from florence2_client.gateway.anylabeling import XAnyLabeling
from florence2_client.gateway.backend import Backend, count_tokens, unless_gone
from florence2_client.gateway.chat import Chunks, completion, read_messages
from florence2_client.gateway.errors import AsciiJson, Refused, error_body, error_response
from florence2_client.gateway.images import ImageSource
from florence2_client.gateway.label_studio.files import ProjectFiles, require_address
from florence2_client.gateway.label_studio.routes import LabelStudio
from florence2_client.gateway.observe import Counts, Observer, print_line
from florence2_client.gateway.schema import ChatRequest, Completion, ErrorResponse, ModelList
from florence2_client.methods import DEFAULT_MODEL, DEFAULT_RETRY_SECONDS
from florence2_client.result import Result
from florence2_client.transports import DEFAULT_URL, Tls, open_async_transport, parse_url

HEALTH_SECONDS = 10.0  # for the probe
HEALTH_AGE = 5.0  # seconds for which a finding holds, so that clients cannot make the gateway probe all the time
STATUSES = {  # what the description says of errors
    400: "the request is wrong", 401: "the API key is missing or wrong", 404: "there is no such model",
    408: "the request took too long to arrive", 413: "the request is too large",
    429: "too many requests; Retry-After says when to try again", 500: "the server failed",
    503: "no server answers", 504: "the time limit passed",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": words} for status, words in STATUSES.items()
}


@dataclass(frozen=True)
class GatewayOptions:
    """What the gateway stands in front of, and what it permits.

    `models`: ensembles of the server, the first of which answers to /health. `keys`: API keys; with none, every client
    may send requests. `image_hosts`: see `ImageSource`. `origins`: of web pages that may send requests (CORS).
    `label_studio`: its URL and a token, with which its tasks' images are read.
    """

    url: str = DEFAULT_URL
    models: tuple[str, ...] = (DEFAULT_MODEL,)
    headers: dict[str, str] = field(default_factory=dict)
    tls: Tls | None = None
    keys: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    image_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    label_studio: tuple[str, str] = ("", "")
    timeout: float = 120.0


def make_app(options: GatewayOptions, log: Callable[[str], None] | None = print_line) -> FastAPI:
    """Return the ASGI application. `log` takes the lines of the access log."""
    gateway = Gateway(options)
    app: FastAPI = FastAPIOffline(
        title="Florence-2 gateway", version=__version__, redoc_url=None, lifespan=gateway.lifespan,
        description="Florence-2 behind OpenAI's API. Boxes and scores are in `message.florence2`.",
    )  # fmt: skip
    app.get("/v1/models", response_model=ModelList, responses={401: ERRORS[401]})(gateway.models)
    app.post("/v1/chat/completions", response_model=Completion, responses=ERRORS)(gateway.chat)
    for router in gateway.labeling():
        app.include_router(router)
    app.get("/health", responses={503: {"description": "the server does not work"}})(gateway.health)
    app.get("/metrics", response_class=Response, responses={401: ERRORS[401]})(gateway.metrics)
    for kind in Florence2Error, RequestValidationError, HTTPException, Exception:
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(Guard, keys=options.keys, limits=options.limits)
    if options.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=options.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Observer, counts=gateway.counts, log=log)
    return app


class Gateway:
    """The routes, and the connections that they share."""

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        require_address(options.label_studio[0])
        self._address = parse_url(options.url, options.headers, options.tls)
        self._images = ImageSource(options.image_hosts)
        self._files = ProjectFiles(self._images, *options.label_studio)
        self._backend = Backend(self._images, options.timeout)
        self._labeling = Backend(self._images, options.timeout)
        self._started = int(time.time())
        self._health: tuple[float, Health] | None = None
        self._probing = asyncio.Lock()
        self.counts = Counts()

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Hold the connections while the application runs."""
        options, transport = self._options, open_async_transport(self._address)
        # Labeling tools do not retry by themselves. Other clients know how long they want to wait, so an overload must
        # reach them at once.
        for backend, retry_for in (self._labeling, DEFAULT_RETRY_SECONDS), (self._backend, 0.0):
            for model in options.models:
                backend.clients[model.removesuffix("_ensemble")] = AsyncClient(
                    options.url, model, headers=options.headers, tls=options.tls, retry_for=retry_for,
                    transport=transport,
                )  # fmt: skip
        try:
            async with self._images, self._files:
                yield
        finally:
            await transport.close()

    def labeling(self) -> list[APIRouter]:
        """Return the routes for labeling tools."""
        return [LabelStudio(self._labeling, self._files).router(ERRORS), XAnyLabeling(self._labeling).router(ERRORS)]

    async def models(self) -> Any:
        """List the models."""
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": self._started, "owned_by": "florence2"}
                for name in self._backend.clients
            ],
        }

    async def chat(self, request: Request, body: ChatRequest) -> Any:
        """Run a task on an image."""
        state = request.scope["state"]
        client = self._backend.client(body.model)
        state["model"] = client.model
        body.require_supported()
        asked = read_messages(body.messages)
        known = task_from_name(asked.task.partition(">")[0] + ">" if asked.task.startswith("<") else asked.task)
        state["task"] = known.token if known else "other"
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        options: Any = {**body.options(), "timeout": self._options.timeout}
        logprobs = bool(body.logprobs)
        image = await unless_gone(request, self._backend.images.read(asked.image_url))
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            chunks = Chunks(head, logprobs=logprobs, include_usage=include_usage)
            return await _streamed(request, client.stream(image, asked.task, asked.text, **options), chunks)
        result = await unless_gone(request, client.run(image, asked.task, asked.text, **options))
        count_tokens(state, [result])
        return AsciiJson(completion(result, head, logprobs=logprobs))

    async def health(self) -> Any:
        """Say whether the server works, by a real request every few seconds."""
        async with self._probing:
            if self._health is None or time.monotonic() - self._health[0] > HEALTH_AGE:
                found = await asyncio.to_thread(
                    check_health, self._options.url, self._options.models[0], HEALTH_SECONDS,
                    headers=self._options.headers, tls=self._options.tls,
                )  # fmt: skip
                self._health = (time.monotonic(), found)
        found = self._health[1]
        status = "ok" if found.alive else "unavailable"
        return AsciiJson({"status": status, "message": found.sentence}, 200 if found.alive else 503)

    async def metrics(self) -> Response:
        """Return the gateway's counters for Prometheus."""
        return Response(generate_latest(self.counts.registry), media_type=CONTENT_TYPE_LATEST)


async def _streamed(request: Request, results: AsyncGenerator[Result[Any], None], chunks: Chunks) -> StreamingResponse:
    """Return the response once the first result is there, so that an early error has its own status."""
    first, state = await unless_gone(request, anext(results)), request.scope["state"]

    async def events() -> AsyncIterator[str]:
        yield _event(chunks.first())
        try:
            async with contextlib.aclosing(results):
                result = first
                while not result.final:
                    if grown := chunks.growth(result):
                        yield _event(grown)
                    result = await anext(results)
                count_tokens(state, [result])
                for chunk in chunks.last(result):
                    yield _event(chunk)
        except Florence2Error as error:
            state["error"] = error.code
            yield _event(error_body(error))
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _answer_error(request: Request, error: Exception) -> AsciiJson:
    """Answer any failure of a route in OpenAI's form."""
    param: str | None = None
    failure: Florence2Error | Refused
    if isinstance(error, Florence2Error):
        failure = error
    elif isinstance(error, RequestValidationError):
        failure, param = _invalid(error.errors())
    elif isinstance(error, HTTPException):
        codes = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 408: "REQUEST_TIMEOUT", 413: "REQUEST_TOO_LARGE"}
        sentences = {404: "there is no such route", 405: "the route does not take this method"}
        sentence = sentences.get(error.status_code, str(error.detail))
        failure = Refused(error.status_code, codes.get(error.status_code, "INVALID_REQUEST"), sentence)
    else:
        failure = InternalError("the gateway failed on this request; see its log")
    request.scope["state"]["error"] = failure.code
    return error_response(failure, param, path=request.url.path)


def _invalid(errors: Sequence[Any]) -> tuple[InvalidRequest, str | None]:
    """Return the first mistake that pydantic found, and the field that it is in."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['ctx']['error']}"), None
    place = ".".join(str(part) for part in first["loc"][1:] if not str(part).startswith(("list[", "function-")))
    whole = first["msg"] if first["type"] == "not_finite" else "the body must be a JSON object"
    sentence = f"{place}: {first['msg'].lower()}" if place else whole
    return InvalidRequest(sentence), place or None
