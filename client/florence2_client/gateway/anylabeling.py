"""X-AnyLabeling's remote protocol, under the prefix /x-anylabeling of the gateway.

The schema is that of X-AnyLabeling-Server: models with tasks, and shapes in pixels of the image.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from florence2.answers import TextAnswer
from florence2.contract import OPTIONS
from florence2.errors import InvalidPrompt, InvalidRequest
from florence2.images import encoded_image
from florence2.tasks import TASKS, Grammar, Task, TaskInput
from florence2_client.exchange import Question
from florence2_client.gateway.backend import Backend, count_tokens, unless_gone
from florence2_client.gateway.errors import AsciiJson
from florence2_client.gateway.schema import JsonBody
from florence2_client.objects import Found, Shape, plain_text
from florence2_client.result import Result
from florence2_client.tasks import parse_task

PREFIX = "/x-anylabeling"
DEFAULT_TASK = "<OD>"
WIDGETS: dict[TaskInput, dict[str, dict[str, str]]] = {  # what the window shows for a task
    TaskInput.NONE: {"button_run": {}},
    TaskInput.TEXT: {"edit_text": {"placeholder": "what to look for, such as: a red car, a dog"}, "button_send": {}},
    TaskInput.REGION: {"add_pos_rect": {}, "button_run_rect": {}, "button_clear": {}, "button_finish_object": {}},
}
THRESHOLDS: dict[str, dict[str, str]] = {"input_conf": {}, "edit_conf": {}}  # of confidence
BATCH_MODES = {TaskInput.NONE: "default", TaskInput.TEXT: "text_prompt", TaskInput.REGION: None}
SEVERAL = re.compile(r"[,.;]")  # between the phrases of a prompt
MOST_TEXTS = 100  # phrases or boxes: each is a request


class ShapesRequest(JsonBody):
    """A request for shapes."""

    model: str = Field(description="one of `GET /v1/models`")
    image: str = Field(description="a `data:` URL or base64")
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="`current_task`, `text_prompt`, `marks`, `conf_threshold`, `filter_classes`, generation options",
    )


class XAnyLabeling:
    """The routes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def router(self, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
        """Return the routes; `responses` describes errors."""
        router = APIRouter(prefix=PREFIX, tags=["X-AnyLabeling"])
        router.get("/health")(self.health)
        router.get("/v1/models", responses={401: responses[401]})(self.models)
        router.get("/v1/models/{model_id}/info", responses=responses)(self.info)
        router.post("/v1/predict", responses=responses)(self.predict)
        return router

    async def health(self) -> Any:
        """Say that the gateway runs; its own /health tests the server."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"status": "healthy", "models_loaded": len(self._backend.clients), "timestamp": now}

    async def models(self) -> Any:
        """List the models, each with its tasks and the widgets that they need."""
        return {"success": True, "data": {name: describe(name) for name in self._backend.clients}}

    async def info(self, model_id: str) -> Any:
        """Describe a model."""
        self._backend.client(model_id)
        return AsciiJson({"success": True, "data": {"model_id": model_id, **describe(model_id)}})

    async def predict(self, request: Request, body: ShapesRequest) -> Any:
        """Run a task on an image."""
        backend, state = self._backend, request.scope["state"]
        client = backend.client(body.model)
        task = parse_task(str(body.params.get("current_task") or DEFAULT_TASK)).known
        if task is None:
            raise InvalidPrompt(f"there is no task {str(body.params['current_task'])[:80]!r}")
        state["model"], state["task"] = client.model, task.token
        least = threshold_of(body.params)
        texts = texts_of(task, body.params)
        if len(texts) > MOST_TEXTS:
            raise InvalidPrompt(f"a request takes at most {MOST_TEXTS} phrases or rectangles, not {len(texts)}")
        options: Any = {each.keyword: body.params[each.keyword] for each in OPTIONS if each.keyword in body.params}

        async def answers() -> list[Result[Any]]:
            if re.match(r"(data|https?):", body.image, re.IGNORECASE):
                image = await backend.images.read(body.image)
            else:
                image = encoded_image(body.image.encode("utf-8", "replace"))
            questions = [Question(image, task.token, text, options=options) for text in texts]
            replies = client.run_many(questions, timeout=backend.timeout)
            async with contextlib.aclosing(replies):
                found = [reply.unwrap() async for reply in replies]
            count_tokens(state, found)
            return found

        found = await unless_gone(request, answers())
        return AsciiJson({"success": True, "data": shapes_of(task, found, least, body.params.get("filter_classes"))})


def describe(name: str) -> dict[str, Any]:
    """Return what X-AnyLabeling needs to know about a model."""
    tasks = [
        {
            "id": task.name,
            "name": task.name.replace("_", " ").capitalize().replace("Od", "Object detection").replace("Ocr", "OCR"),
            "description": task.summary,
            "batch_processing_mode": BATCH_MODES[task.input],
            "active_widgets": WIDGETS[task.input]
            | ({} if task.grammar is Grammar.TEXT else THRESHOLDS)
            | {"toggle_preserve_existing_annotations": {}},
        }
        for task in sorted(TASKS.values(), key=lambda task: task.token != DEFAULT_TASK)  # the first is the default
    ]
    widgets = [{"name": "remote_task_select_combobox", "value": None}, {"name": "edit_conf", "value": 0.0}]
    return {
        "display_name": f"Florence-2 ({name})", "widgets": widgets, "params": {}, "batch_processing_mode": "default",
        "available_tasks": tasks,
    }  # fmt: skip


def texts_of(task: Task, params: Mapping[str, Any]) -> list[Any]:
    """Return the text of each request: one per phrase or box. Raise InvalidPrompt if a needed one is missing."""
    if task.input is TaskInput.NONE:
        return [None]
    if task.input is TaskInput.REGION:
        marks = params.get("marks")
        boxes = [mark["data"] for mark in marks if _is_box(mark)] if isinstance(marks, list) else []
        if not boxes:
            raise InvalidPrompt(f"{task.name} needs a rectangle")
        return [(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in boxes]
    prompt = str(params.get("text_prompt") or "").strip()
    phrases = [prompt] if task.grammar is Grammar.GROUNDING else [each.strip() for each in SEVERAL.split(prompt)]
    if not any(phrases):
        raise InvalidPrompt(f"{task.name} needs a text prompt")
    return [phrase for phrase in phrases if phrase]


def _is_box(mark: Any) -> bool:
    if not isinstance(mark, Mapping) or mark.get("type") != "rectangle" or mark.get("label", 1) != 1:
        return False
    data = mark.get("data")
    return isinstance(data, list) and len(data) == 4 and all(type(number) in (int, float) for number in data)


def threshold_of(params: Mapping[str, Any]) -> float:
    """Return the lowest confidence of a shape. Raise InvalidRequest if it is not a number from 0 to 1."""
    least = params.get("conf_threshold") or 0.0
    if type(least) not in (int, float) or not 0 <= least <= 1:  # a bool is an int, too
        raise InvalidRequest("conf_threshold must be a number from 0 to 1")
    return least


def shapes_of(task: Task, answers: list[Result[Any]], least: float, wanted: Any) -> dict[str, Any]:
    """Return the shapes and the image's description. A line of text has the label `text`; its words describe it."""
    if task.input is TaskInput.NONE and all(isinstance(answer.answer, TextAnswer) for answer in answers):
        return {"shapes": [], "description": "\n".join(plain_text(answer.answer.text) for answer in answers)}
    shapes = [
        shape
        for answer in answers
        for found in answer.objects
        if found.confidence is None or found.confidence >= least
        for shape in _shapes(task, found)
        if not isinstance(wanted, list) or not wanted or shape["label"] in wanted
    ]
    # A box was drawn for one more shape, so those that were drawn before stay.
    kept = {"replace": False} if task.input is TaskInput.REGION else {}
    return {"shapes": shapes, "description": "", **kept}


def _shapes(task: Task, found: Found) -> Iterator[dict[str, Any]]:
    words = found.label or "object"
    texts = task.grammar is Grammar.OCR or task.token in ("<REGION_TO_OCR>", "<REGION_TO_DESCRIPTION>")
    label = "text" if "OCR" in task.token else "object" if texts else words
    x1, y1, x2, y2 = found.box
    box = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    for points in (box,) if found.shape is Shape.BOX else found.polygons:
        if len(points) >= 3:
            yield {
                "label": label, "shape_type": "rectangle" if found.shape is Shape.BOX else "polygon",
                "points": [[x, y] for x, y in points], "score": found.confidence, "attributes": {},
                "description": words if texts else None, "difficult": False, "direction": 0, "flags": None,
                "group_id": None, "kie_linking": [],
            }  # fmt: skip
