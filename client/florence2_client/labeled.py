"""Labeled images in COCO's format, and which of the objects in an answer they confirm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.errors import InvalidRequest
from florence2.tasks import TASKS, Grammar, TaskInput
from florence2_client.exchange import Question
from florence2_client.objects import Box, Found

MATCHES_FROM = 0.5  # intersection over union
NAMES = ("annotations.json", "_annotations.coco.json")  # what COCO exports are called, the latter by Roboflow


@dataclass(frozen=True)
class LabeledImage:
    """An image and its objects: label and box each."""

    path: Path
    objects: list[tuple[str, Box]]

    def questions(self, task: str) -> Iterator[Question]:
        """Yield the requests of a task: one, or one for each label of the image if the task takes a phrase."""
        if TASKS[task].input is TaskInput.NONE:
            yield Question(self.path, task)
        else:
            for label in dict.fromkeys(label for label, _ in self.objects):
                yield Question(self.path, task, label)

    def labels_for(self, question: Question) -> list[tuple[str, Box]]:
        """Return the objects that the right answer locates, labeled as it labels them."""
        task = TASKS[question.task]
        if task.grammar is Grammar.BARE_BOXES:
            return [("", box) for _, box in self.objects]
        if task.input is TaskInput.TEXT:
            return [(label, box) for label, box in self.objects if label == question.text]
        return self.objects


def read_coco(folder: Path, annotations: Path | None = None) -> list[LabeledImage]:
    """Return the images of a folder that a COCO file in it, or the file given, labels.

    Raise InvalidRequest if there is no such file, or several, or if it is none, or names images that are missing.
    """
    path = annotations or _annotations_in(folder)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {each["id"]: str(each["name"]) for each in values["categories"]}
        files = {each["id"]: folder / each["file_name"] for each in values["images"]}
        objects: dict[Any, list[tuple[str, Box]]] = {number: [] for number in files}
        for each in values["annotations"]:
            x, y, width, height = map(float, each["bbox"])
            if not math.isfinite(x + y + width + height) or width < 0 or height < 0:
                raise ValueError("no box")
            if not each.get("iscrowd"):
                objects[each["image_id"]].append((names[each["category_id"]], (x, y, x + width, y + height)))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"{path} is not a COCO file of boxes: it needs images, categories, and annotations with bbox, image_id and "
            "category_id"
        ) from error
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise InvalidRequest(
            f"{path} names {len(missing):,} images that are not in {folder}, such as {missing[0].name}"
        )
    return [LabeledImage(files[number], objects[number]) for number in files]


def _annotations_in(folder: Path) -> Path:
    if not folder.is_dir():
        raise InvalidRequest(f"there is no directory {folder}")
    found = sorted(folder.glob("*.json"))
    named = [path for path in found if path.name in NAMES] or found
    if len(named) != 1:
        count = "no" if not named else "more than one"
        raise InvalidRequest(f"{folder} has {count} .json file with COCO labels; name it with --annotations")
    return named[0]


def confirmed(found: Sequence[Found], labels: Sequence[tuple[str, Box]]) -> list[bool]:
    """Return for each object whether it is right: whether a label of the same name has an overlap of at least 0.5.

    As in COCO's evaluation, surer objects choose first, and each label confirms one object only.
    """
    free, right = list(labels), [False] * len(found)
    for place in sorted(range(len(found)), key=lambda place: -(found[place].confidence or 0)):
        same = [label for label in free if label[0].casefold() == found[place].label.casefold()]
        best = max(same, key=lambda label: overlap(found[place].box, label[1]), default=None)
        if best is not None and overlap(found[place].box, best[1]) >= MATCHES_FROM:
            free.remove(best)
            right[place] = True
    return right


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / both if both > 0 else 0.0
