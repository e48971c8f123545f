"""The JSON lines of a batch run: the record from which the next run resumes, and the files that are made from it.

A line holds `image`, `task`, for some tasks `prompt_text`, either the fields of `Result.to_dict` or an `error` with its
`code`, and `request`. An image that cannot be read has one line, whatever the number of tasks. An incomplete last line,
which a killed run may leave, is cut off.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeAlias

from florence2.answers import TextAnswer
from florence2.errors import Florence2Error, InvalidImage, InvalidRequest
from florence2.tasks import TASKS
from florence2_client.objects import coco_annotation, coco_categories, coco_image, plain_text, yolo_lines
from florence2_client.result import Result
from florence2_client.resuming import require_form
from florence2_client.sources import naming, output_path

CHUNK = 1 << 16
BEGINNING = b'{"image": '  # of every line

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two runs from writing at once
    fcntl = None  # type: ignore[assignment]

Key: TypeAlias = tuple[str, str, str | None]  # the image's path, task token or prompt, text


@dataclass(frozen=True)
class Entry:
    """One line: the key of a request, with its answer or the mistake in it.

    `code` is the error's. `request` is what else the answer depends on: `model`, `options`, `file`, the size and the
    time of the image's file, and `served`, what the server told about the model; None in lines of early versions.
    """

    key: Key
    result: Result[Any] | None
    error: str | None = None
    code: str | None = None
    request: dict[str, Any] | None = None

    @property
    def is_of_image(self) -> bool:
        """Return whether the image cannot be read, whatever the task."""
        return self.code == InvalidImage.code

    def to_json(self) -> str:
        """Return the line."""
        image, task, text = self.key
        key = {"image": image, "task": task} | ({} if text is None else {"prompt_text": text})
        answer = self.result.to_dict() if self.result else {"error": self.error, "code": self.code}
        return json.dumps(key | answer | key | {"request": self.request}, ensure_ascii=False)


class Journal:
    """The open file of one run at a time.

    `answered` and `failed` hold the keys that need no request any more, `unreadable` the images that need none for any
    task. Lines that are `stale` are removed. Each new line is also printed to `echo`.
    """

    def __init__(
        self, path: Path, stale: Callable[[Entry], bool] = lambda entry: False, echo: TextIO | None = None
    ) -> None:
        self.path = path
        self.answered: set[Key] = set()
        self.failed: set[Key] = set()
        self.unreadable: set[str] = set()
        self._stale = stale
        self._echo = echo

    def __enter__(self) -> Journal:
        with naming(self.path):
            self._file = self._locked(self.path)
        try:
            end = self._end_of_lines()
            kept = bytearray()  # a flag per line
            for entry in entries(self.path):
                kept.append(not self._stale(entry))
                if kept[-1]:
                    self._remember(entry)
            self._file.truncate(end)
            if not all(kept):
                self._keep_only(kept)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, key: Key) -> bool:
        return key in self.answered or key in self.failed or key[0] in self.unreadable

    def add(self, entry: Entry) -> None:
        """Write a line. When this returns, the kernel has it, so it survives this process but not a power failure."""
        text = entry.to_json()
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        with naming(self.path):
            while line:
                line = line[self._file.write(line) :]
        if self._echo:
            print(text, file=self._echo, flush=True)
        self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        (self.answered if entry.error is None else self.failed).add(entry.key)
        if entry.is_of_image:
            self.unreadable.add(entry.key[0])

    def _locked(self, path: Path) -> io.FileIO:
        """Open the file. Raise InvalidRequest if another run has it open, or has just replaced it."""
        file = open(path, "ab+", buffering=0)  # noqa: SIM115
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidRequest(f"{path} is not a file to resume from; --out - prints the answers")
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise BlockingIOError
        except BlockingIOError as error:
            file.close()
            raise InvalidRequest(f"another run is writing to {path}") from error
        except BaseException:
            file.close()
            raise
        return file

    def _keep_only(self, kept: Sequence[int]) -> None:
        """Replace the file by one with these lines, in one step."""
        target = Path(os.path.realpath(self.path))
        part = target.with_name(f".{target.name}.part")
        with naming(part), open(self.path, "rb") as old:
            part.unlink(missing_ok=True)
            new = self._locked(part)
            for line in itertools.compress(old, kept):
                new.write(line)
            shutil.copymode(target, part)
            os.replace(part, target)
        self._file.close()
        self._file = new

    def _end_of_lines(self) -> int:
        """Return where the last complete line ends. Raise InvalidRequest if the rest is not the beginning of a line."""
        end = place = self._file.seek(0, os.SEEK_END)
        tail = b""
        while place and b"\n" not in tail:
            place = max(0, place - CHUNK)
            self._file.seek(place)
            tail = self._file.read(end - place)
        half = tail[tail.rfind(b"\n") + 1 :]
        if not half.startswith(BEGINNING[: len(half)]):
            raise InvalidRequest(f"{self.path} ends with an incomplete line that is not from a batch run")
        return end - len(half)


def entries(path: Path) -> Iterator[Entry]:
    """Yield the complete lines of a journal. Raise InvalidRequest on one that is not from a batch run."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
                key, request = (values["image"], values["task"], values.get("prompt_text")), values.get("request")
                require_form(key, request)
                if "error" in values:
                    yield Entry(key, None, str(values["error"]), values.get("code"), request)
                else:
                    yield Entry(key, Result.from_dict(values), request=request)
            except (ValueError, TypeError, KeyError, AttributeError, Florence2Error) as error:
                raise InvalidRequest(f"line {number} of {path} is not from a batch run") from error


# ---- files made from a journal, line by line, so that memory stays flat


def tasks_with_objects(journal: Path, first: Iterable[str], confidence: float = 0.0) -> list[str]:
    """Return the tasks that located something: those in `first`, then the others in the order of their lines."""
    located = dict.fromkeys(first, False)
    for entry, result in _answered(journal, confidence):
        located[entry.key[1]] = located.get(entry.key[1], False) or bool(result.objects)
    return [task for task, any_objects in located.items() if any_objects]


def write_coco(
    journal: Path, target: Path, tasks: Collection[str], confidence: float = 0.0, *, rle: bool = False
) -> None:
    """Write one data set of the objects that these tasks found; images without any are listed too.

    rle: give every object a mask, run-length encoded.
    """
    images: dict[str, tuple[int, tuple[int, int]]] = {}
    categories: dict[str, int] = {}
    for entry, result in _answered(journal, confidence):
        images.setdefault(entry.key[0], (len(images) + 1, result.image_size))
        for label in result.labels if entry.key[1] in tasks else ():
            categories.setdefault(label, len(categories) + 1)
    with _replacing(target) as file:
        file.write('{"images": [\n')
        _write_items(file, (coco_image(number, name, size) for name, (number, size) in images.items()))
        file.write('\n], "annotations": [\n')
        annotations = (
            coco_annotation(found, images[entry.key[0]][0], categories[found.label], result.image_size, rle=rle)
            for entry, result in _answered(journal, confidence)
            if entry.key[1] in tasks
            for found in result.objects
        )
        _write_items(file, ({"id": number} | annotation for number, annotation in enumerate(annotations, 1)))
        file.write('\n], "categories": [\n')
        _write_items(file, coco_categories(categories))
        file.write("\n]}\n")


def write_yolo(journal: Path, folder: Path, tasks: Collection[str], confidence: float = 0.0) -> None:
    """Write the objects that these tasks found: a label file per image, and `classes.txt` with a label per line."""
    classes: dict[str, int] = {}
    images_by_path: dict[Path, str] = {}
    for entry, result in _answered(journal, confidence):
        path = output_path(folder, entry.key[0], ".txt")
        if images_by_path.setdefault(path, entry.key[0]) != entry.key[0]:
            raise InvalidRequest(f"{images_by_path[path]} and {entry.key[0]} would share the label file {path}")
        for label in result.labels if entry.key[1] in tasks else ():
            classes.setdefault(label, len(classes))
    for path in images_by_path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for entry, result in _answered(journal, confidence):
        if entry.key[1] in tasks:
            with open(output_path(folder, entry.key[0], ".txt"), "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in yolo_lines(result.objects, classes, result.image_size))
    with _replacing(folder / "classes.txt") as file:
        file.writelines(f"{' '.join(label.split())}\n" for label in classes)


def write_csv(journal: Path, target: Path) -> str:
    """Write a row per text answer: image, task, the text of the request, the answer. Return what is left out."""
    left_out: Counter[str] = Counter()
    with _replacing(target) as file:
        rows = csv.writer(file)
        rows.writerow(["image", "task", "asked", "answer"])
        for entry in entries(journal):
            image, task, asked = entry.key
            name = TASKS[task].name if task in TASKS else task
            if entry.result is None:
                left_out["errors"] += 1
            elif isinstance(entry.result.answer, TextAnswer):
                rows.writerow([image, task, asked or "", plain_text(entry.result.answer.text)])
                left_out[f"locations of {name}"] += len(entry.result.objects)
            else:
                left_out[f"answers of {name}"] += 1
    return ", ".join(f"{what} ({count:,})" for what, count in left_out.items() if count)


def _answered(journal: Path, confidence: float) -> Iterator[tuple[Entry, Result[Any]]]:
    """Yield the answers with the objects of at least this confidence."""
    return ((entry, entry.result.at_least(confidence)) for entry in entries(journal) if entry.result)


def _write_items(file: TextIO, items: Iterable[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write(",\n" * bool(number) + json.dumps(item, ensure_ascii=False))


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[io.TextIOWrapper]:
    """Open a file that replaces the target when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with naming(target):
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        os.replace(part, target)
