"""Plan the requests for a task of Label Studio, from its controls or from a region that a user drew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florence2.errors import InvalidRequest
from florence2.tasks import TaskInput, task_from_name
from florence2_client.gateway.label_studio.config import Control, Label, LabelingConfig
from florence2_client.tasks import ParsedTask, Prompt, parse_task

CAPTION, PROPOSE, READ, FIND = "<CAPTION>", "<REGION_PROPOSAL>", "<OCR_WITH_REGION>", "<OPEN_VOCABULARY_DETECTION>"
OUTLINE, OUTLINE_REGION = "<REFERRING_EXPRESSION_SEGMENTATION>", "<REGION_TO_SEGMENTATION>"
CLASSIFY, READ_REGION = "<REGION_TO_CATEGORY>", "<REGION_TO_OCR>"
READING = (None, "<OCR>", READ)  # tasks of a transcription for which the lines of text are its regions
BARE = ("rectangle", "polygon", "brush")  # they take their labels from <Labels>
GEOMETRY = (*BARE, "rectanglelabels", "polygonlabels", "brushlabels")
MOST_PHRASES = 100  # of a control: each is a request
BINS = 1000  # of a location token


@dataclass(frozen=True)
class Ask:
    """A request: the text of its task, and the label of what it finds, if that is known beforehand."""

    text: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Step:
    """Requests with one task, whose answers become results of a control.

    `controls`: tools, of which each object uses the one that fits it. `names`: the <Labels> of tools without labels.
    """

    controls: tuple[Control, ...]
    task: str
    asks: tuple[Ask, ...]
    labels: tuple[Label, ...] = ()
    names: Control | None = None
    region: Mapping[str, Any] | None = None  # the result that a control for regions describes

    @property
    def control(self) -> Control:
        """Return the first of its controls."""
        return self.controls[0]


def plan(config: LabelingConfig, data: Mapping[str, Any]) -> list[Step]:
    """Return the steps for a task with this data. Raise InvalidRequest on an attribute that makes no sense."""
    return [step for image in config.images for step in _steps(config, image, data)]


def _steps(config: LabelingConfig, image: str, data: Mapping[str, Any]) -> Iterator[Step]:
    names = _names(config, image)
    controls = [each for each in _used(config, image) if not each.is_per_region and each.tag != "labels"]
    free = [each for each in controls if each.tag in GEOMETRY and _chosen(each) is None]
    readers = [each for each in free if not each.tag.startswith("brush")] if _reads(config, image) else []
    if readers:
        labels = (names or readers[0]).labels(data)
        yield Step(tuple(readers), READ, (Ask(),), labels, names)
    bare = [each for each in free if each.tag in BARE]
    for control in controls:
        if control in free and (readers or control in bare[1:]):
            continue  # tools that share labels are ways to draw the same object
        shared = names if control.tag in BARE else None
        labels = (shared or control).labels(data)
        task = _chosen(control) or _default(control, labels)
        if task and (asks := _asks(task, control, labels)):
            yield Step((control,), Prompt(task.sent) if task.note else task.sent, asks, labels, shared)


def plan_drawn(config: LabelingConfig, data: Mapping[str, Any], drawn: Mapping[str, Any]) -> list[Step]:
    """Return the steps that outline what a user drew a box around, or that fit the box to it.

    If the project transcribes text, there is nothing to outline: `plan_regions` has the requests.
    """
    image, region = drawn["to_name"], region_of(drawn)
    controls = [each for each in _used(config, image) if each.tag in GEOMETRY and not each.is_per_region]
    targets = [each for each in controls if each.tag.startswith(("polygon", "brush"))]
    if not targets and not any(each.is_per_region for each in _used(config, image)):
        targets = [each for each in controls if each.name == drawn.get("from_name")] or controls
    bare = [each for each in targets if each.tag in BARE]
    targets = [each for each in targets if each not in bare[1:]]
    if _reads(config, image) or region is None:
        return []
    steps = []
    for control in targets:
        names = _names(config, image) if control.tag in BARE else None
        labels = (names or control).labels(data)
        given = label_of(drawn)
        label = given if any(given == each.value for each in labels) else None
        if label is None and len(labels) == 1:
            label = labels[0].value
        steps.append(Step((control,), OUTLINE_REGION, (Ask(region, label),), labels, names))
    return steps


def plan_regions(
    config: LabelingConfig, data: Mapping[str, Any], regions: Sequence[Mapping[str, Any]], described: Sequence[str]
) -> list[Step]:
    """Return the steps of the controls that describe regions. `described`: names of controls that are done already."""
    steps = []
    for region in regions:
        for control in _used(config, region["to_name"]):
            if not control.is_per_region or control.tag not in ("textarea", "choices") or control.name in described:
                continue
            chosen = _chosen(control)
            default = CLASSIFY if control.tag == "choices" else READ_REGION
            task = chosen.known.token if chosen and chosen.known and chosen.takes is TaskInput.REGION else default
            if text := region_of(region):
                steps.append(Step((control,), task, (Ask(text),), control.labels(data), region=region))
    return steps


def region_of(result: Mapping[str, Any]) -> str | None:
    """Return the box around a result's shape as location tokens, which need no image size; None if it has no shape.

    >>> region_of({"value": {"x": 10, "y": 20, "width": 30, "height": 40}})
    '<loc_100><loc_200><loc_400><loc_600>'
    """
    value = result.get("value")
    if not isinstance(value, Mapping):
        return None
    try:
        if "points" in value:
            xs, ys = zip(*((float(x), float(y)) for x, y in value["points"]), strict=True)
        elif "radiusX" in value:
            x, y, width, height = (float(value[name]) for name in ("x", "y", "radiusX", "radiusY"))
            xs, ys = (x - width, x + width), (y - height, y + height)
        else:
            x, y, width, height = (float(value[name]) for name in ("x", "y", "width", "height"))
            xs, ys = (x, x + width), (y, y + height)
        corners = (min(xs), min(ys), max(xs), max(ys))
        return "".join(f"<loc_{min(max(int(percent * BINS / 100), 0), BINS - 1)}>" for percent in corners)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def label_of(result: Mapping[str, Any]) -> str | None:
    """Return the first label of a result."""
    value = result.get("value")
    if not isinstance(value, Mapping):
        return None
    given = value.get(str(result.get("type"))) or value.get("labels")
    return str(given[0]) if isinstance(given, list) and given else None


def _used(config: LabelingConfig, image: str) -> list[Control]:
    return [each for each in config.controls if each.to_name == image and not each.is_skipped]


def _names(config: LabelingConfig, image: str) -> Control | None:
    return next((each for each in _used(config, image) if each.tag == "labels"), None)


def _reads(config: LabelingConfig, image: str) -> bool:
    """Return whether the regions of an image are lines of text: whether a text area for regions transcribes them."""
    areas = [each for each in _used(config, image) if each.tag == "textarea" and each.is_per_region]
    chosen = [_chosen(area) for area in areas]
    return any((task.sent if task else None) in READING for task in chosen)


def _chosen(control: Control) -> ParsedTask | None:
    """Return the task that the configuration names: in an attribute, or as the name of a text area."""
    given = control.attributes.get("model_task") or control.attributes.get("ml_task")
    if given:
        return parse_task(given)
    known = task_from_name(control.name) if control.tag == "textarea" else None
    return ParsedTask(known.token, known) if known else None


def _default(control: Control, labels: Sequence[Label]) -> ParsedTask | None:
    """Return the default task of a control; None if the control needs labels and has none."""
    if control.tag == "textarea":
        return parse_task(CAPTION)
    if not labels:
        return parse_task(PROPOSE) if control.tag.startswith("rectangle") else None
    return parse_task(OUTLINE if control.tag.startswith(("polygon", "brush")) else FIND)


def _asks(task: ParsedTask, control: Control, labels: Sequence[Label]) -> tuple[Ask, ...]:
    """Return the requests of a task: one, or one per phrase of each label. A task that needs a region has none."""
    text = control.attributes.get("model_text")
    if task.takes is TaskInput.REGION and not task.text:
        return ()
    if task.takes is not TaskInput.TEXT or task.text or text:
        return (Ask(text),)
    asks = tuple(Ask(phrase, label.value) for label in labels for phrase in label.phrases)
    if len(asks) > MOST_PHRASES:
        raise InvalidRequest(
            f"{control.name} has {len(asks)} labels, more than the {MOST_PHRASES} that are looked for one by one; "
            'choose model_task="od"'
        )
    return asks
