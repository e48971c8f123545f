"""Read a labeling configuration: which controls there are, for which image, with which labels."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.parsers import expat

from florence2.errors import InvalidRequest

LABELS_OF = {  # the controls with labels, and the tag of each label
    "rectanglelabels": "label", "polygonlabels": "label", "brushlabels": "label", "labels": "label",
    "choices": "choice",
}  # fmt: skip
CONTROLS = {*LABELS_OF, "rectangle", "polygon", "brush", "textarea"}
MOST_IMAGES = 20  # of a configuration: those of a page are in memory
MOST_CONTROLS = 100


@dataclass(frozen=True)
class Label:
    """A label or choice. `phrases`: what to request from the model, and what the model may answer."""

    value: str  # in results
    phrases: tuple[str, ...]

    @staticmethod
    def of(attributes: Mapping[str, Any]) -> Label | None:
        """Return the label with these attributes, None if it has no name.

        >>> Label.of({"value": "Traffic_light", "alias": "tl"})
        Label(value='tl', phrases=('Traffic light',))
        """
        name = str(attributes.get("value") or attributes.get("alias") or "").strip()
        given = str(attributes.get("predicted_values") or "").split(",")
        phrases = tuple(phrase for text in given if (phrase := text.strip())) or (name.replace("_", " "),)
        return Label(str(attributes.get("alias") or name), phrases) if name else None


@dataclass(frozen=True)
class Control:
    """A control of an image."""

    tag: str  # in small letters, as in `type` of a result
    name: str
    to_name: str  # of the image
    attributes: Mapping[str, str]  # names in small letters
    own_labels: tuple[Label, ...] = ()

    @property
    def is_per_region(self) -> bool:
        """Return whether it describes a region, and not the whole image."""
        return self.attributes.get("perregion", "").lower() == "true"

    @property
    def is_skipped(self) -> bool:
        """Return whether the configuration excludes it from predictions."""
        return self.attributes.get("model_skip", "").lower() == "true"

    @property
    def minimum(self) -> float:
        """Return the lowest confidence of an object. Raise InvalidRequest if it is not a number from 0 to 1."""
        given = self.attributes.get("model_score_threshold", "0")
        with contextlib.suppress(ValueError):
            if 0 <= (number := float(given)) <= 1:  # NaN is not
                return number
        raise InvalidRequest(f"model_score_threshold of {self.name} must be a number from 0 to 1, not {given[:40]!r}")

    def labels(self, data: Mapping[str, Any]) -> tuple[Label, ...]:
        """Return the labels, of which some may be in the task's data: `<RectangleLabels value="$labels" …>`."""
        variable = self.attributes.get("value", "")
        given = data.get(variable[1:]) if variable.startswith("$") else None
        if not isinstance(given, (list, tuple)):
            return self.own_labels
        each = (item if isinstance(item, Mapping) else {"value": item} for item in given)
        return (*self.own_labels, *filter(None, map(Label.of, each)))


@dataclass(frozen=True)
class LabelingConfig:
    """The controls of a project, and the field of a task's data that holds each image."""

    images: Mapping[str, str]  # name -> field
    controls: tuple[Control, ...]


def read_config(text: str) -> LabelingConfig:
    """Return what a configuration describes. Raise InvalidRequest if it is not one.

    Configurations come from users, so document types, which could declare entities, are refused.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError) as error:
        raise InvalidRequest(f"label_config is not valid XML: {str(error)[:120]}") from error
    return reader.config()


def _refuse(*_declaration: Any) -> None:
    raise InvalidRequest("label_config must not have a document type")


class _Reader:
    """Collects images, and controls with the labels inside them, in any layout."""

    def __init__(self) -> None:
        self._images: dict[str, str] = {}
        self._controls: list[tuple[str, dict[str, str], list[Label]]] = []
        self._open: list[tuple[str, list[Label]] | None] = []  # of each open element: the control that it is

    def start(self, tag: str, given: dict[str, str]) -> None:
        tag, attributes = tag.lower(), {name.lower(): value for name, value in given.items()}
        opened = None
        if tag == "image" and "name" in attributes:
            field = attributes.get("value") or attributes.get("valuelist", "")
            self._images[attributes["name"]] = field.removeprefix("$")
        elif tag in CONTROLS and attributes.get("name") and attributes.get("toname"):
            labels: list[Label] = []
            self._controls.append((tag, attributes, labels))
            opened = (tag, labels)
        else:
            control = next(filter(None, reversed(self._open)), None)
            if control and LABELS_OF.get(control[0]) == tag and (label := Label.of(attributes)):
                control[1].append(label)
        self._open.append(opened)

    def end(self, _tag: str) -> None:
        self._open.pop()

    def config(self) -> LabelingConfig:
        if len(self._images) > MOST_IMAGES or len(self._controls) > MOST_CONTROLS:
            raise InvalidRequest(f"label_config has more than {MOST_IMAGES} images or {MOST_CONTROLS} controls")
        controls = []
        for tag, attributes, labels in self._controls:
            objects: Sequence[str] = [name.strip() for name in attributes["toname"].split(",")]
            if to_name := next((name for name in objects if name in self._images), None):
                controls.append(Control(tag, attributes["name"], to_name, attributes, tuple(labels)))
        return LabelingConfig(self._images, tuple(controls))
