"""Files made from the journal of a batch run: COCO, YOLO labels, CSV. Memory stays flat, line by line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from florence2.answers import TextAnswer
from florence2.errors import InvalidRequest
from florence2_client.cli.journal import Entry, entries
from florence2_client.cli.sources import output_path
from florence2_client.objects import coco_annotation, coco_categories, coco_image, plain_text, yolo_lines
from florence2_client.result import Result


def write_coco(journal: Path, target: Path) -> None:
    """Write one data set of the objects of all tasks; images without any are listed too."""
    images: dict[str, tuple[int, tuple[int, int]]] = {}
    categories: dict[str, int] = {}
    for entry, result in _answered(journal):
        images.setdefault(entry.key[0], (len(images) + 1, result.image_size))
        for label in result.labels:
            categories.setdefault(label, len(categories) + 1)
    with _replacing(target) as file:
        file.write('{"images": [\n')
        _write_items(file, (coco_image(number, name, size) for name, (number, size) in images.items()))
        file.write('\n], "annotations": [\n')
        annotations = (
            coco_annotation(found, images[entry.key[0]][0], categories[found.label])
            for entry, result in _answered(journal)
            for found in result.objects
        )
        _write_items(file, ({"id": number} | annotation for number, annotation in enumerate(annotations, 1)))
        file.write('\n], "categories": [\n')
        _write_items(file, coco_categories(categories))
        file.write("\n]}\n")


def write_yolo(journal: Path, folder: Path) -> None:
    """Write a label file per image, and `classes.txt` with one label per line, in the order of their numbers."""
    classes: dict[str, int] = {}
    images_by_path: dict[Path, str] = {}
    for entry, result in _answered(journal):
        path = output_path(folder, entry.key[0], ".txt")
        if images_by_path.setdefault(path, entry.key[0]) != entry.key[0]:
            raise InvalidRequest(f"{images_by_path[path]} and {entry.key[0]} would share the label file {path}")
        for label in result.labels:
            classes.setdefault(label, len(classes))
    for path in images_by_path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for entry, result in _answered(journal):
        with open(output_path(folder, entry.key[0], ".txt"), "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in yolo_lines(result.objects, classes, result.image_size))
    with _replacing(folder / "classes.txt") as file:
        file.writelines(f"{' '.join(label.split())}\n" for label in classes)


def write_csv(journal: Path, target: Path) -> None:
    """Write a row per text answer: image, task, the text of the request, the answer."""
    with _replacing(target) as file:
        rows = csv.writer(file)
        rows.writerow(["image", "task", "asked", "answer"])
        for entry, result in _answered(journal):
            if isinstance(result.answer, TextAnswer):
                image, task, asked = entry.key
                rows.writerow([image, task, asked or "", plain_text(result.answer.text)])


def _answered(journal: Path) -> Iterator[tuple[Entry, Result[Any]]]:
    return ((entry, entry.result) for entry in entries(journal) if entry.result)


def _write_items(file: TextIO, items: Iterable[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write(",\n" * bool(number) + json.dumps(item, ensure_ascii=False))


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[io.TextIOWrapper]:
    """Open a file that replaces the target when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file
    os.replace(part, target)
