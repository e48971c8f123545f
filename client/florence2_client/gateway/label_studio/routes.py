"""Label Studio's ML backend protocol, under the prefix /label-studio of the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from florence2.errors import Florence2Error, InvalidRequest
from florence2_client.gateway.backend import Backend, unless_gone
from florence2_client.gateway.errors import AsciiJson, error_body
from florence2_client.gateway.label_studio.config import read_config
from florence2_client.gateway.label_studio.files import ProjectFiles
from florence2_client.gateway.label_studio.job import LabelingTask, label
from florence2_client.gateway.label_studio.regions import score_of
from florence2_client.gateway.schema import JsonBody

PREFIX = "/label-studio"
MOST_TASKS = 1000  # of a request
TASKS_AT_ONCE = 4  # of a request: their images are in memory


class Params(BaseModel):
    """The parameters of a request for predictions."""

    model_config = ConfigDict(extra="allow")

    context: dict[str, Any] | None = Field(None, description="`result`: what the user has just drawn")


class PredictRequest(JsonBody):
    """A request for predictions."""

    model_config = ConfigDict(extra="allow")

    tasks: list[LabelingTask] = Field(max_length=MOST_TASKS)
    label_config: str = Field(description="the project's labeling configuration, in XML")
    params: Params | None = None


class Predictions(BaseModel):
    """A prediction for each task, in order; that of a task that failed has no results, and an `error`."""

    results: list[dict[str, Any]]
    model_version: str


class Version(BaseModel):
    """The name by which Label Studio knows predictions of this model."""

    model_version: str


class Status(BaseModel):
    """Whether the backend runs."""

    status: str = "UP"
    model_class: str = "Florence2"


class LabelStudio:
    """The routes."""

    def __init__(self, backend: Backend, files: ProjectFiles) -> None:
        self._backend = backend
        self._files = files

    def router(self, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
        """Return the routes; `responses` describes errors."""
        router = APIRouter(prefix=PREFIX, tags=["Label Studio"])
        router.get("/", response_model=Status)(self.health)
        router.get("/health", response_model=Status)(self.health)
        router.post("/setup", response_model=Version, responses=responses)(self.setup)
        router.get("/versions", responses={401: responses[401]})(self.versions)
        router.post("/predict", response_model=Predictions, responses=responses)(self.predict)
        router.post("/train", status_code=201, responses=responses)(self.train)
        router.post("/webhook", status_code=201)(self.webhook)
        return router

    async def health(self) -> Any:
        """Say that the backend runs. Label Studio gives it a second, so it sends no request to the server."""
        return Status()

    async def setup(self) -> Any:
        """Return the name of the model. There is nothing to set up: each request brings its configuration."""
        return {"model_version": self._version()}

    async def versions(self) -> Any:
        """List the names of models."""
        return {"versions": [self._version()]}

    async def train(self) -> Any:
        """Accept a request to train, which changes nothing."""
        return {}

    async def webhook(self) -> Any:
        """Accept an event of Label Studio, which changes nothing."""
        return {}

    def _version(self) -> str:
        return next(iter(self._backend.clients))

    async def predict(self, request: Request, body: PredictRequest) -> Any:
        """Return predictions for tasks. A task that fails does not affect the others.

        The response is an error if there is nothing else to return: while a user draws, or if the server failed on
        every task.
        """
        state = request.scope["state"]
        state.update(task="label-studio", model=self._version())
        config = read_config(body.label_config)
        context = body.params.context if body.params else None
        drawn = context if context and "result" in context else None
        places = asyncio.Semaphore(TASKS_AT_ONCE)

        async def attempt(task: LabelingTask) -> list[dict[str, Any]] | Florence2Error:
            async with places:
                try:
                    return await label(self._backend, self._files, config, task, state, drawn)
                except Florence2Error as error:
                    return error

        found = await unless_gone(request, asyncio.gather(*map(attempt, body.tasks)))
        errors = [each for each in found if isinstance(each, Florence2Error)]
        if errors and len(errors) == len(found) and (drawn or not any(isinstance(e, InvalidRequest) for e in errors)):
            raise errors[0]
        if errors:
            state["error"] = errors[0].code
        return AsciiJson({"results": [self._prediction(each) for each in found], "model_version": self._version()})

    def _prediction(self, found: list[dict[str, Any]] | Florence2Error) -> dict[str, Any]:
        """Return a prediction. The model version names the error, if any, so that Label Studio tries again."""
        if isinstance(found, Florence2Error):
            version = f"{self._version()} ({found.code})"
            return {"result": [], "score": 0.0, "model_version": version, **error_body(found)}
        return {"result": found, "score": score_of(found), "model_version": self._version()}
