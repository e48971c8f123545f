"""The work on one task of Label Studio: read its images, send the requests of each step, and collect the results."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from florence2.errors import InvalidImage, InvalidRequest
from florence2_client.async_client import AsyncClient
from florence2_client.exchange import Question
from florence2_client.gateway.backend import Backend, count_tokens
from florence2_client.gateway.label_studio.config import LabelingConfig
from florence2_client.gateway.label_studio.files import ProjectFiles
from florence2_client.gateway.label_studio.plan import (
    CLASSIFY,
    Ask,
    Step,
    label_of,
    plan,
    plan_drawn,
    plan_regions,
    region_of,
)
from florence2_client.gateway.label_studio.regions import DESCRIBED, match, results_of, words_of
from florence2_client.result import Result

MOST_PAGES = 100  # of a task
MOST_DRAWN = 100  # regions of a request: each is at least one for the server
UNDEFINED = "$undefined$"  # Label Studio's name for the field of tasks that were imported as a list of files


class LabelingTask(BaseModel):
    """A task: one or several images to label."""

    model_config = ConfigDict(extra="allow")

    id: Any = None
    data: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One image of each `<Image valueList="$pages">`, whose field of a task's data is a list, and all other images.

    `images`: the names of those that are in lists, whose results say on which page they are.
    """

    number: int
    config: LabelingConfig
    data: Mapping[str, Any]
    images: frozenset[str] = frozenset()

    def numbered(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return results with the number of the page."""
        return [each | ({"item_index": self.number} if each["to_name"] in self.images else {}) for each in results]


def pages_of(config: LabelingConfig, data: Mapping[str, Any]) -> list[Page]:
    """Return the pages of a task; images that are not in lists are on the first one."""
    lists = {name: data[field] for name, field in config.images.items() if isinstance(data.get(field), list)}
    if len(max(lists.values(), key=len, default=[])) > MOST_PAGES:
        raise InvalidRequest(f"a task has more than {MOST_PAGES} images in a list")
    pages = []
    for number in range(max([1, *map(len, lists.values())])):
        here = {name: urls[number] for name, urls in lists.items() if number < len(urls)}
        images = {name: field for name, field in config.images.items() if name in here or number == 0}
        of_page = {config.images[name]: url for name, url in here.items()}
        pages.append(Page(number, replace(config, images=images), {**data, **of_page}, frozenset(here)))
    return pages


async def label(
    backend: Backend, files: ProjectFiles, config: LabelingConfig, task: LabelingTask, state: dict[str, Any],
    drawn: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the results of a task, or with what a user has `drawn`, the results about that."""
    pages = pages_of(config, task.data)
    results: list[dict[str, Any]] = []
    if drawn is None:
        for page in pages:  # one after the other, so that only one page's images are in memory
            results += await _Job(backend, files, page, task.id, state).predict()
        return results
    regions = drawn.get("result")
    if isinstance(regions, list) and len(regions) > MOST_DRAWN:
        raise InvalidRequest(f"more than {MOST_DRAWN} regions were drawn")
    for region in regions if isinstance(regions, list) else []:
        if isinstance(region, dict) and region_of(region) is not None:
            number = region.get("item_index") or 0
            if type(number) is not int or not 0 <= number < len(pages):
                raise InvalidRequest("the region that was drawn is on none of the task's images")
            results += await _Job(backend, files, pages[number], task.id, state).complete(region)
    return results


class _Job:
    """The work on one page. Each image is read once. `state` is the request's, for the access log."""

    def __init__(self, backend: Backend, files: ProjectFiles, page: Page, task_id: Any, state: dict[str, Any]) -> None:
        self._client: AsyncClient = next(iter(backend.clients.values()))
        self._timeout = backend.timeout
        self._files, self._page, self._task_id, self._state = files, page, task_id, state
        self._config, self._data = page.config, page.data
        self._read: dict[str, bytes] = {}

    async def predict(self) -> list[dict[str, Any]]:
        """Return the results of every step, and then what the controls for regions say about them."""
        results: list[dict[str, Any]] = []
        described: list[str] = []
        texts = [each for each in self._config.controls if each.tag == "textarea" and each.is_per_region]
        for step, answers in await self._answered(plan(self._config, self._data)):
            area = next((each for each in texts if each.to_name == step.control.to_name), None)
            results += await asyncio.to_thread(results_of, step, answers, area)  # masks of large images take long
            if step.task in DESCRIBED and area:
                described.append(area.name)
        shapes: dict[str, dict[str, Any]] = {}  # of each region: the first of its results
        for result in results:
            if region_of(result):
                shapes.setdefault(result["id"], result)
        return self._page.numbered(results + await self._about(list(shapes.values()), described))

    async def complete(self, region: dict[str, Any]) -> list[dict[str, Any]]:
        """Return results for a region that a user drew: outlines, and what the controls for regions say about it."""
        names = list(self._config.images)
        if region.get("to_name") not in names:
            if len(names) != 1:
                raise InvalidRequest("the region that was drawn is of none of the images")
            region = {**region, "to_name": names[0]}
        region = {**region, "id": str(region.get("id") or "drawn")}
        if label_of(region) is None:
            region = await self._classified(region)
        results = []
        for step, answers in await self._answered(plan_drawn(self._config, self._data, region)):
            results += await asyncio.to_thread(results_of, step, answers)
        about = await self._about([region], [])
        return self._page.numbered(results + ([region, *about] if about else []))

    async def _classified(self, region: dict[str, Any]) -> dict[str, Any]:
        """Return a region with the label that the model gives it, if a control has it."""
        controls = [each for each in self._config.controls if each.to_name == region["to_name"]]
        labels = [label for each in controls if each.tag.endswith("labels") for label in each.labels(self._data)]
        text = region_of(region)
        if len(labels) < 2 or text is None:
            return region
        [(_, [answer])] = await self._answered([Step((controls[0],), CLASSIFY, (Ask(text),))])
        label = match(words_of(answer), labels)
        return {**region, "value": {**region["value"], "labels": [label]}} if label else region

    async def _about(self, regions: Sequence[dict[str, Any]], described: Sequence[str]) -> list[dict[str, Any]]:
        results = []
        for step, answers in await self._answered(plan_regions(self._config, self._data, regions, described)):
            results += results_of(step, answers)
        return results

    async def _answered(self, steps: Sequence[Step]) -> list[tuple[Step, list[Result[Any]]]]:
        """Return each step with its answers. Their requests are in flight together."""
        questions = [
            Question(await self._image(step.control.to_name), step.task, ask.text)
            for step in steps
            for ask in step.asks
        ]
        replies = self._client.run_many(questions, timeout=self._timeout)
        async with contextlib.aclosing(replies):
            answers = [reply.unwrap() async for reply in replies]
        count_tokens(self._state, answers)
        rest = iter(answers)
        return [(step, list(itertools.islice(rest, len(step.asks)))) for step in steps]

    async def _image(self, name: str) -> bytes:
        if name not in self._read:
            field = self._config.images[name]
            url = self._data.get(field, self._data.get(UNDEFINED))
            if not isinstance(url, str) or not url:
                raise InvalidImage(f"the task's data has no image in the field {field[:80]!r}")
            self._read[name] = await self._files.read(url, self._task_id)
        return self._read[name]
