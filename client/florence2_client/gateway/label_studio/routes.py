"""Label Studio's ML backend protocol, under the prefix /label-studio of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from florence2.errors import Florence2Error, InvalidImage, InvalidRequest
from florence2_client.async_client import AsyncClient
from florence2_client.exchange import Question
from florence2_client.gateway.backend import Backend, unless_gone
from florence2_client.gateway.errors import AsciiJson, error_body
from florence2_client.gateway.label_studio.config import LabelingConfig, read_config
from florence2_client.gateway.label_studio.files import ProjectFiles
from florence2_client.gateway.label_studio.plan import (
    CLASSIFY,
    Step,
    label_of,
    plan,
    plan_drawn,
    plan_regions,
    region_of,
)
from florence2_client.gateway.label_studio.regions import DESCRIBED, match, results_of, score_of, words_of
from florence2_client.result import Result

PREFIX = "/label-studio"
TASKS_AT_ONCE = 4  # of a request: their images are in memory
UNDEFINED = "$undefined$"  # Label Studio's name for the field of tasks that were imported as a list of files


class LabelingTask(BaseModel):
    """A task: an image, or several, that are to be labeled."""

    model_config = ConfigDict(extra="allow")

    id: Any = None
    data: dict[str, Any]


class Params(BaseModel):
    """What comes with a request for predictions."""

    model_config = ConfigDict(extra="allow")

    context: dict[str, Any] | None = Field(None, description="`result`: what the user has just drawn")


class PredictRequest(BaseModel):
    """A request for predictions."""

    model_config = ConfigDict(extra="allow")

    tasks: list[LabelingTask]
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
    """The routes. `files` and `client` are known once the gateway runs."""

    def __init__(self, backend: Callable[[], Backend], files: Callable[[], ProjectFiles]) -> None:
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
        return {"status": "UP", "model_class": "Florence2"}

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
        return next(iter(self._backend().clients))

    async def predict(self, request: Request, body: PredictRequest) -> Any:
        """Return predictions for tasks. A task that fails leaves the others.

        A failure is the response if there is nothing else to return: while a user draws, and if the server failed on
        every task.
        """
        request.scope["state"]["task"] = "label-studio"
        request.scope["state"]["model"] = self._version()
        config = read_config(body.label_config)
        drawn = body.params.context if body.params else None
        places = asyncio.Semaphore(TASKS_AT_ONCE)

        async def attempt(task: LabelingTask) -> list[dict[str, Any]] | Florence2Error:
            async with places:
                try:
                    return await self._labeled(config, task, drawn)
                except Florence2Error as error:
                    return error

        found = await unless_gone(request, asyncio.gather(*map(attempt, body.tasks)))
        errors = [each for each in found if isinstance(each, Florence2Error)]
        if errors and len(errors) == len(found) and (drawn or not any(isinstance(e, InvalidRequest) for e in errors)):
            raise errors[0]
        if errors:
            request.scope["state"]["error"] = errors[0].code
        return AsciiJson({"results": [self._prediction(each) for each in found], "model_version": self._version()})

    def _prediction(self, found: list[dict[str, Any]] | Florence2Error) -> dict[str, Any]:
        """Return a prediction. One that failed has a name of its own, so that Label Studio asks again."""
        if isinstance(found, Florence2Error):
            version = f"{self._version()} ({found.code})"
            return {"result": [], "score": 0.0, "model_version": version, **error_body(found)}
        return {"result": found, "score": score_of(found), "model_version": self._version()}

    async def _labeled(
        self, config: LabelingConfig, task: LabelingTask, drawn: dict[str, Any] | None
    ) -> list[dict[str, Any]]:
        """Return the results of a task. Each image is read once."""
        job = _Job(self._backend(), self._files(), config, task)
        if drawn is None:
            return await job.predict()
        regions = drawn.get("result")
        results: list[dict[str, Any]] = []
        for region in regions if isinstance(regions, list) else []:
            if isinstance(region, dict) and region_of(region) is not None:
                results += await job.complete(region)
        return results


class _Job:
    """The work on one task."""

    def __init__(self, backend: Backend, files: ProjectFiles, config: LabelingConfig, task: LabelingTask) -> None:
        self._client: AsyncClient = next(iter(backend.clients.values()))
        self._timeout = backend.timeout
        self._files, self._config, self._task = files, config, task
        self._read: dict[str, bytes] = {}

    async def predict(self) -> list[dict[str, Any]]:
        """Return the results of every step, and then what the controls for regions say about them."""
        results: list[dict[str, Any]] = []
        described: list[str] = []
        texts = [each for each in self._config.controls if each.tag == "textarea" and each.is_per_region]
        for step in plan(self._config, self._task.data):
            area = next((each for each in texts if each.to_name == step.control.to_name), None)
            results += results_of(step, await self._answers(step), area)
            if step.task in DESCRIBED and area:
                described.append(area.name)
        shapes = {each["id"]: each for each in reversed(results) if region_of(each)}  # the first with each id
        return results + await self._about(list(shapes.values())[::-1], described)

    async def complete(self, region: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what a region that a user drew becomes: outlines, and what the controls for regions say about it."""
        names = list(self._config.images)
        if region.get("to_name") not in names:
            if len(names) != 1:
                raise InvalidRequest("the region that was drawn is of none of the images")
            region = {**region, "to_name": names[0]}
        region = {"id": "drawn", **region}
        if label_of(region) is None:
            region = await self._classified(region)
        results = []
        for step in plan_drawn(self._config, self._task.data, region):
            results += results_of(step, await self._answers(step))
        about = await self._about([region], [])
        return results + ([region, *about] if about else [])

    async def _classified(self, region: dict[str, Any]) -> dict[str, Any]:
        """Return a region with the label that the model gives it, if a control has it."""
        controls = [each for each in self._config.controls if each.to_name == region["to_name"]]
        labels = [label for each in controls if each.tag.endswith("labels") for label in each.labels(self._task.data)]
        text = region_of(region)
        if len(labels) < 2 or text is None:
            return region
        image = await self._image(region["to_name"])
        answer: Result[Any] = await self._client.run(image, CLASSIFY, text, timeout=self._timeout)
        label = match(words_of(answer), labels)
        return {**region, "value": {**region["value"], "labels": [label]}} if label else region

    async def _about(self, regions: Sequence[dict[str, Any]], described: Sequence[str]) -> list[dict[str, Any]]:
        results = []
        for step in plan_regions(self._config, self._task.data, regions, described):
            results += results_of(step, await self._answers(step))
        return results

    async def _answers(self, step: Step) -> list[Result[Any]]:
        image = await self._image(step.control.to_name)
        questions = [Question(image, step.task, ask.text) for ask in step.asks]
        replies = self._client.run_many(questions, timeout=self._timeout)
        async with contextlib.aclosing(replies):
            return [reply.unwrap() async for reply in replies]

    async def _image(self, name: str) -> bytes:
        if name not in self._read:
            field = self._config.images[name]
            url = self._task.data.get(field, self._task.data.get(UNDEFINED))
            if not isinstance(url, str) or not url:
                raise InvalidImage(f"the task's data has no image in the field {field[:80]!r}")
            self._read[name] = await self._files.read(url, self._task.id)
        return self._read[name]
