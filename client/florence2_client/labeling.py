"""Label a folder of images: `label` makes a data set for supervision, YOLO and COCO."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2.errors import Florence2Error, InvalidImage, InvalidOption, InvalidPrompt, InvalidRequest
from florence2.tasks import Grammar
from florence2_client.client import Client
from florence2_client.description import identity_of
from florence2_client.exchange import Question
from florence2_client.images import read_bytes
from florence2_client.journal import Entry, Journal, Key, entries
from florence2_client.labeled import overlap
from florence2_client.objects import Found, coco_dataset, numbered, supervision_detections, yolo_lines
from florence2_client.ontology import LOG, WITHOUT_CLASSES, Ontology, Tolerance
from florence2_client.request import Options, require_share
from florence2_client.results import Results
from florence2_client.resuming import model_differences
from florence2_client.sources import EXTRAS, ImagePaths, require_distinct, require_writable, stamp_of, why_absent
from florence2_client.transports import DEFAULT_URL

if TYPE_CHECKING:
    import supervision
    from typing_extensions import Unpack


def label(
    folder: str | os.PathLike[str],
    classes: Sequence[str] | Mapping[str, str] | None = None,
    *,
    ontology: Mapping[str, str] | None = None,
    task: str | None = None,
    other: str | None = None,
    url: str = DEFAULT_URL,
    client: Client | None = None,
    yolo: str | os.PathLike[str] | None = None,
    coco: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    min_confidence: float = 0.0,
    nms: float | None = None,
    concurrency: int = 16,
    **options: Unpack[Options],
) -> supervision.DetectionDataset:
    """Label all images in a folder and below, and return them as a `supervision.DetectionDataset`.

    classes: what to look for. ontology: phrases, and the class of what each finds; give it instead of classes. task: by
    default, open-vocabulary detection of each phrase, or `od` with the model's own labels if there are no phrases. If
    the model chooses the labels, only objects with a named label are kept; the others get the class `other`, if it is
    given. nms: if objects of a class have an intersection over union of at least this, keep only the one with the
    highest confidence.

    yolo: write this folder, with `data.yaml`, `labels` and copies of the `images`. coco: write this file. out: keep the
    answers in this file, from which the same call resumes after an interruption. client: use this client instead of
    `url`, for API keys, TLS or another model. options: as for `Client.run`.

    An image that cannot be read, or is gone when its turn comes, is left out, and the logger `florence2_client.images`
    warns of it. Raise InvalidRequest if the folder has no images, and the server's error if it cannot be reached.

    >>> dataset = label(".", ontology={"the purple star": "star", "the green triangle": "triangle"}, client=client)
    >>> dataset.classes, [detections.class_id.tolist() for _, _, detections in dataset]
    (['star', 'triangle'], [[0, 1]])
    """
    if importlib.util.find_spec("supervision") is None:  # said before anything is sent
        raise ImportError("label needs the package supervision: pip install 'florence2-triton[label]'")
    if client and url != DEFAULT_URL:
        raise InvalidRequest("give a url or a client, not both: the client has a server of its own")
    wanted = _ontology(task, classes, ontology, other)
    for name, share in (("min_confidence", min_confidence), ("nms", 1 if nms is None else nms)):
        require_share(name, share)
    if nms == 0:
        raise InvalidOption("nms must be above 0; None keeps all objects")
    paths = _images_in(Path(folder), yolo)
    for file in (out, coco):  # before anything is sent
        if file:
            require_writable(Path(file), paths)
    if yolo:
        Path(yolo).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        client = client or stack.enter_context(Client(url))
        answers = Path(out or stack.enter_context(tempfile.NamedTemporaryFile(suffix=".jsonl")).name)
        run = _Run(client, wanted, paths, options)
        with Journal(answers, run.is_stale) as journal:
            run.send(journal, concurrency)
        images = list(run.images(answers, min_confidence))
    if nms is not None:
        images = [image.without_duplicates(nms) for image in images]
    numbers = numbered(wanted.classes or [found.label for image in images for found in image.objects])
    if yolo:
        _write_yolo(images, numbers, Path(folder), Path(yolo))
    if coco:
        _write_coco(images, numbers, Path(folder), Path(coco))
    return _dataset(images, numbers)


@dataclass(frozen=True)
class _Image:
    """A labeled image: its size (width, height), and its objects, whose labels are classes."""

    path: Path
    objects: list[Found]
    size: tuple[int, int]

    def without_duplicates(self, threshold: float) -> _Image:
        """Return the image without objects that overlap one of their class with a higher confidence."""
        kept: list[Found] = []
        for found in sorted(self.objects, key=lambda found: -(found.confidence or 0)):
            if all(found.label != other.label or overlap(found.box, other.box) < threshold for other in kept):
                kept.append(found)
        return replace(self, objects=[found for found in self.objects if any(found is one for one in kept)])


class _Run:
    """The requests of one call, with a key for each image and prompt."""

    def __init__(self, client: Client, ontology: Ontology, paths: list[str], options: Options) -> None:
        self._client = client
        self._ontology = ontology
        self._paths = paths
        self._options = options
        self._keys = {(path, *prompt) for path in paths for prompt in ontology.prompts}
        try:
            self._served = identity_of(client._description())
        except Florence2Error:  # a proxy may hide it, and whether the server is there is for the first request to find
            self._served = {}

    def is_stale(self, entry: Entry) -> bool:
        """Return whether a line has a key of this call, but an error or the answer to another request."""
        if entry.key not in self._keys:
            return False
        request = dict(entry.request or {})
        differing = model_differences(request.pop("served", None) or {}, self._served)
        same = request == self._request(self._stamp(entry.key[0])) and not differing
        return entry.error is not None or not same

    def send(self, journal: Journal, concurrency: int) -> None:
        """Write the answers that are missing. Raise the errors that `Tolerance` raises."""
        tolerance = Tolerance()
        replies = self._client.run_many(
            self._questions(journal), concurrency=concurrency, ordered=False, **self._options
        )
        with closing(replies):
            for reply in replies:
                key, stamp = reply.question.key
                if tolerance.settle(key[0], Results([reply.as_result()])):
                    served = {"served": self._served} if self._served else {}
                    journal.add(Entry(key, reply.unwrap(), request=self._request(stamp) | served))

    def _questions(self, journal: Journal) -> Iterator[Question]:
        for path in self._paths:
            keys: list[Key] = [(path, *prompt) for prompt in self._ontology.prompts]
            stamp = None
            for key in keys:
                if key not in journal:
                    stamp = stamp or self._stamp(path, warn=True)
                    if stamp is None:
                        break
                    yield Question(Path(path), *key[1:], key=(key, stamp))

    def images(self, answers: Path, min_confidence: float) -> Iterator[_Image]:
        """Yield, in order, the images whose requests were all answered."""
        found = {entry.key: entry.result for entry in entries(answers) if entry.key in self._keys and entry.result}
        for path in self._paths:
            keys: list[Key] = [(path, *prompt) for prompt in self._ontology.prompts]
            if all(key in found for key in keys) and self._stamp(path, warn=True):
                results = Results(found[key] for key in keys)
                objects = self._ontology.objects(results.at_least(min_confidence))
                named = [replace(one, label=name) for name, one in objects]
                yield _Image(Path(path), named, results[0].image_size)

    def _stamp(self, path: str, *, warn: bool = False) -> list[int] | None:
        """Return what tells whether a file has changed, None if it is gone or cannot be opened."""
        try:
            return stamp_of(path)
        except OSError as error:
            if warn:
                LOG.warning("%s is left out: %s", path, why_absent(path, error))
            return None

    def _request(self, stamp: list[int] | None) -> dict[str, Any]:
        """Return what an answer depends on besides its key and the model, in the form that JSON gives back."""
        options = {name: value for name, value in self._options.items() if name != "timeout"}
        request = {"model": self._client.model, "options": options, "file": stamp}
        return json.loads(json.dumps(request, default=str))


def _ontology(task: str | None, classes: Any, ontology: Any, other: str | None) -> Ontology:
    """Return what to look for. Raise InvalidPrompt if that cannot be objects with classes."""
    if classes is not None and ontology is not None:
        raise InvalidPrompt("give classes or an ontology, not both")
    if isinstance(classes, str):
        raise InvalidPrompt(f"classes are a list, such as [{classes!r}]")
    wanted = Ontology.of(task, classes if ontology is None else ontology, other)
    if wanted.task.known and wanted.task.known.grammar is Grammar.TEXT:
        raise InvalidPrompt(f"{wanted.task.sent} locates nothing in an image")
    if wanted.task.sent in WITHOUT_CLASSES and not wanted.classes:
        raise InvalidPrompt(f"what {wanted.task.sent} finds has no classes; give one for all")
    return wanted


def _images_in(folder: Path, yolo: str | os.PathLike[str] | None) -> list[str]:
    """Return the images that training programs can read: no documents and no HEIC photos.

    Raise InvalidRequest if there are none, if two would share a label file, or if the copies would be among them.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"there is no directory {folder}")
    if yolo and Path(yolo).resolve().is_relative_to(folder.resolve()):
        raise InvalidRequest(f"{yolo} is inside of {folder}, so the next call would label the copies as well")
    others = {suffix for suffixes, *_ in EXTRAS for suffix in suffixes}
    found = ImagePaths([str(folder)])
    for left_out in found.skipped:
        if left_out.endswith(os.sep):  # the other ones are no images
            LOG.warning("%s is left out: %s", left_out, found.why_skipped(left_out))
    paths = [path for path in found.files if Path(path).suffix.lower() not in others]
    if not paths:
        raise InvalidRequest(f"there is no image in {folder} but documents and HEIC photos")
    require_distinct(paths, folder, "label file", ".txt")
    return paths


def _dataset(images: Sequence[_Image], classes: Mapping[str, int]) -> supervision.DetectionDataset:
    import supervision

    detections = {}
    for image in images:
        detections[str(image.path)] = located = supervision_detections(image.objects, image.size)
        if image.objects:
            located.class_id[:] = [classes[found.label] for found in image.objects]
    return supervision.DetectionDataset(list(classes), list(detections), detections)


def _write_yolo(images: Sequence[_Image], classes: Mapping[str, int], folder: Path, target: Path) -> None:
    """Write the layout of Ultralytics, in which `images/a.jpg` belongs to `labels/a.txt`."""
    target.mkdir(parents=True, exist_ok=True)  # also if no image could be read
    for image in images:
        try:
            content = read_bytes(image.path)
        except InvalidImage as error:  # it is gone by now
            LOG.warning("%s is not copied: %s", image.path, error)
            continue
        inside = image.path.relative_to(folder)
        copy, labels = target / "images" / inside, (target / "labels" / inside).with_suffix(".txt")
        for path in copy, labels:
            path.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        lines = yolo_lines(image.objects, classes, image.size)
        labels.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = "".join(f"  {number}: {json.dumps(name)}\n" for name, number in classes.items())
    data = f"path: {json.dumps(str(target.absolute()))}\ntrain: images\nval: images\nnames:\n{names}"
    (target / "data.yaml").write_text(data, encoding="utf-8")


def _write_coco(images: Sequence[_Image], classes: Mapping[str, int], folder: Path, target: Path) -> None:
    named = [(image.path.relative_to(folder).as_posix(), image.size, image.objects) for image in images]
    dataset = coco_dataset(named, numbered(classes, first=1))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(dataset, ensure_ascii=False), encoding="utf-8")
