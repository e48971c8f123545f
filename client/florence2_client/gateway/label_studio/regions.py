"""Turn answers into Label Studio's results, with coordinates in percent of the image."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from florence2.answers import TextAnswer
from florence2_client.gateway.chat import content_of
from florence2_client.gateway.label_studio.brush import brush_rle
from florence2_client.gateway.label_studio.config import Control, Label
from florence2_client.gateway.label_studio.plan import BARE, PROPOSE, READ, Step
from florence2_client.masks import mask_of
from florence2_client.objects import Found, Point, Shape, plain_text
from florence2_client.result import Result

DESCRIBED = (READ, "<DENSE_REGION_CAPTION>")  # tasks whose labels are texts about their regions
UNNAMED = (*DESCRIBED, PROPOSE)  # tasks whose labels name no class: the first label stands for all
SHAPE = ("x", "y", "width", "height", "rotation", "points", "closed", "radiusX", "radiusY", "format", "rle")
NEARLY_LEVEL = 1.0  # degrees that the corners of a level line may be off, as they are rounded to bins
NEARLY_RECTANGULAR = 0.01  # of the longer side of the image


def results_of(step: Step, answers: Sequence[Result[Any]], texts: Control | None = None) -> list[dict[str, Any]]:
    """Return the results of a step. `texts`: the text area that takes what the model says about each region."""
    if step.region is not None:
        return _about_region(step, step.region, answers[0])
    if step.control.tag == "textarea":
        sure = [number for answer in answers for number in answer.confidences[:1]]
        return [_result(step.control, _new_id(), {"text": [words_of(answer) for answer in answers]}, sure)]
    if step.control.tag == "choices":
        return _choices(step, answers)
    results: list[dict[str, Any]] = []
    least = step.control.minimum
    for ask, answer in zip(step.asks, answers, strict=True):
        for found in answer.objects:
            label = ask.label or _matching(found.label, step)
            unsure = found.confidence is not None and found.confidence < least
            if unsure or (label is None and step.labels):
                continue
            for control, shape in _shapes(found, step.controls, answer.image_size):
                said = [(control, {} if label is None or control.tag in BARE else {control.tag: [label]})]
                if step.names and label is not None:
                    said.append((step.names, {"labels": [label]}))
                if texts and step.task in DESCRIBED:
                    said.append((texts, {"text": [found.label]}))
                results += _parts(said, shape, found.confidence, answer.image_size)
    return results


def score_of(results: Iterable[Mapping[str, Any]]) -> float:
    """Return the mean of the results' scores, 0 without any."""
    scores = {each["id"]: each["score"] for each in results if "score" in each}
    return sum(scores.values()) / len(scores) if scores else 0.0


def words_of(answer: Result[Any]) -> str:
    """Return an answer as text for a text area: words without locations, lines of text, or JSON."""
    if isinstance(answer.answer, TextAnswer):
        return plain_text(answer.answer.text)
    return "\n".join(answer.labels) if answer.task in DESCRIBED else content_of(answer)


def match(words: str, labels: Sequence[Label]) -> str | None:
    """Return the label that the model means: the one with this name or phrase, in any case.

    >>> match("Car", [Label("vehicle", ("car", "truck"))])
    'vehicle'
    """
    said = words.strip().casefold()
    for label in labels:
        if said in {label.value.casefold(), *(phrase.casefold() for phrase in label.phrases)}:
            return label.value
    return None


def _matching(words: str, step: Step) -> str | None:
    label = match(words, step.labels)
    return step.labels[0].value if label is None and step.labels and step.task in UNNAMED else label


def _about_region(step: Step, region: Mapping[str, Any], answer: Result[Any]) -> list[dict[str, Any]]:
    """Return what a control says about a region: the region's own shape with a text or a choice."""
    words = words_of(answer)
    if step.control.tag == "choices":
        choice = match(words, step.labels)
        said = {"choices": [choice]} if choice is not None else None
    else:
        said = {"text": [words]}
    if said is None or (answer.confidences[:1] or [1.0])[0] < step.control.minimum:
        return []
    shape = {name: region["value"][name] for name in SHAPE if name in region["value"]}
    size = {name: region[name] for name in ("original_width", "original_height", "image_rotation") if name in region}
    return [_result(step.control, region["id"], {**shape, **said}, answer.confidences[:1]) | size]


def _choices(step: Step, answers: Sequence[Result[Any]]) -> list[dict[str, Any]]:
    """Return the choices that are found in the image or named in its text: the surest one, or all if permitted."""
    sure: dict[str, float] = {}
    for ask, answer in zip(step.asks, answers, strict=True):
        if isinstance(answer.answer, TextAnswer):
            said = [each.value for each in step.labels if _mentions(words_of(answer), each)]
            new = dict.fromkeys(said, (answer.confidences or [1.0])[0])
        else:
            new = {}
            for found in answer.objects:
                if label := ask.label or match(found.label, step.labels):
                    new[label] = max(new.get(label, 0.0), 1.0 if found.confidence is None else found.confidence)
        sure = {label: max(sure.get(label, 0.0), new.get(label, 0.0)) for label in {**sure, **new}}
    best = sorted((label for label in sure if sure[label] >= step.control.minimum), key=lambda label: -sure[label])
    if step.control.attributes.get("choice", "single") != "multiple":
        best = best[:1]
    if not best:
        return []
    return [_result(step.control, _new_id(), {"choices": best}, [sure[best[0]]])]


def _mentions(words: str, label: Label) -> bool:
    names = (label.value, *label.phrases)
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words, re.IGNORECASE) for name in names)


def _parts(
    said: Iterable[tuple[Control, dict[str, Any]]], shape: dict[str, Any], confidence: float | None,
    size: tuple[int, int],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the results of one region, which share its id and shape: one for each control that says something."""
    region_id, sure = _new_id(), [] if confidence is None else [confidence]
    where = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    return [_result(control, region_id, {**shape, **more}, sure) | where for control, more in said]


def _new_id() -> str:
    return uuid.uuid4().hex[:10]


def _result(control: Control, region_id: str, value: dict[str, Any], confidences: Sequence[float]) -> dict[str, Any]:
    found = {
        "id": region_id, "type": control.tag, "from_name": control.name, "to_name": control.to_name, "value": value,
    }  # fmt: skip
    return found | ({"score": min(confidences)} if confidences else {})


def _shapes(
    found: Found, controls: Sequence[Control], size: tuple[int, int]
) -> Iterator[tuple[Control, dict[str, Any]]]:
    """Yield the shapes of an object, with the tool that fits it: boxes and tilted lines of text are rectangles."""
    tools = {control.tag.removesuffix("labels"): control for control in reversed(controls)}
    tilted = _tilted(found, size)
    if "rectangle" in tools and (tilted or "polygon" not in tools or found.shape is Shape.BOX):
        yield tools["rectangle"], tilted or _rectangle(found.box, size)
    elif "polygon" in tools:
        for polygon in found.polygons or (_corners(found.box),):
            points = [[_percent(x, size[0]), _percent(y, size[1])] for x, y in polygon]
            if len(points) >= 3:
                yield tools["polygon"], {"points": points, "closed": True}
    elif "brush" in tools and (mask := mask_of(found, size)).any():
        yield tools["brush"], {"format": "rle", "rle": brush_rle(mask)}


def _rectangle(box: tuple[float, float, float, float], size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = (_percent(number, size[place % 2]) for place, number in enumerate(box))
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}


def _tilted(found: Found, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return the rectangle that a line of text fills, rotated clockwise about its upper left corner, in degrees.

    Return None if the object is not a line of text, or its corners are not nearly those of a rectangle.
    """
    if found.shape is not Shape.QUAD:
        return None
    corners = [complex(x, y) for x, y in found.polygons[0]]
    across = (corners[1] - corners[0] + corners[2] - corners[3]) / 2
    down = (corners[3] - corners[0] + corners[2] - corners[1]) / 2
    if not across or not down:
        return None
    along = across / abs(across)
    height = (down / along).imag  # what is upright to the line; negative if the corners go the other way round
    middle = sum(corners) / 4
    start = middle - across / 2 - along * 1j * height / 2
    fitted = [start, start + across, start + across + along * 1j * height, start + along * 1j * height]
    off = max(abs(corner - fit) for corner, fit in zip(corners, fitted, strict=True))
    if off > NEARLY_RECTANGULAR * max(size):
        return None
    degrees = math.degrees(math.atan2(along.imag, along.real))
    inside = 0 <= start.real <= size[0] and 0 <= start.imag <= size[1]
    if abs(degrees) < NEARLY_LEVEL or height < 0 or not inside:
        return _rectangle(found.box, size)
    return {
        "x": _percent(start.real, size[0]), "y": _percent(start.imag, size[1]),
        "width": _percent(abs(across), size[0]), "height": _percent(height, size[1]), "rotation": degrees % 360,
    }  # fmt: skip


def _corners(box: tuple[float, float, float, float]) -> tuple[Point, ...]:
    x1, y1, x2, y2 = box
    return (x1, y1), (x2, y1), (x2, y2), (x1, y2)


def _percent(number: float, side: int) -> float:
    return min(max(100 * number / side, 0.0), 100.0)
