"""A remote model for FiftyOne; docs/integrations.md shows its use."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fiftyone as fo
import fiftyone.core.models as fom
import numpy as np

from florence2.tasks import Grammar
from florence2_client.client import Client
from florence2_client.images import ImageLike
from florence2_client.masks import mask_of
from florence2_client.methods import DEFAULT_MODEL, DEFAULT_RETRY_SECONDS
from florence2_client.objects import Found, Shape, plain_text
from florence2_client.ontology import Classes, Ontology, Tolerance, ask_each
from florence2_client.results import Results
from florence2_client.transports import DEFAULT_URL, Tls

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection


class Florence2Model(fom.Model):
    """One task of a Florence-2 server, as a model of FiftyOne.

    Boxes become Detections; lines of text and the outlines of segmentation become Polylines; text becomes a
    Classification. An outline of open-vocabulary detection becomes a Detection with a mask. All have confidences, which
    `confidence_thresh` of `apply_model` compares. `classes` are as in `Ontology.of`: phrases to look for, or labels to
    keep; objects with another label get the label `other`. With `batch_size` in `apply_model`, the requests of a batch
    are in flight together, at most `concurrency`. `options` are generation options such as `num_beams`, and `timeout`
    and `tiles`.
    """

    media_type = "image"  # FiftyOne applies such a model to the frames of videos as well
    ragged_batches = False  # nothing is stacked, so FiftyOne may make batches of images of different sizes
    transforms = None  # the server prepares the images
    preprocess = False

    def __init__(
        self,
        url: str = DEFAULT_URL,
        task: str | None = None,
        classes: Classes | None = None,
        *,
        other: str | None = None,
        model: str = DEFAULT_MODEL,
        headers: dict[str, str] | None = None,
        tls: Tls | None = None,
        retry_for: float = DEFAULT_RETRY_SECONDS,
        concurrency: int = 16,
        **options: Any,
    ) -> None:
        """Raise InvalidRequest if the task, its classes, or the URL cannot be used."""
        self.config = SimpleNamespace()  # FiftyOne looks here for thresholds of the model's own
        self._ontology = Ontology.of(task, classes, other)
        self._client = Client(url, model, headers=headers, tls=tls, retry_for=retry_for)
        weakref.finalize(self, self._client.close)  # FiftyOne keeps models open between uses
        self._concurrency = concurrency
        self._options = options
        self._tolerance = Tolerance()

    def predict(self, arg: ImageLike) -> fo.Label:
        """Return the label of an image: an array [height, width, 3], or any other form that the client takes.

        Raise the error of the request, which `apply_model` logs and skips.
        """
        [results] = ask_each(self._client, [arg], self._ontology.prompts, **self._options)
        for error in results.errors:
            raise error
        return self._label(results)

    def predict_all(self, args: Iterable[ImageLike]) -> list[fo.Label | None]:
        """Return the labels of images, in order; None, which changes no sample, for an image whose requests failed.

        The logger `florence2_client.images` says why. Raise errors that the other images would also have.
        """
        return list(self._labels(args, (f"image {number} of a batch" for number in itertools.count())))

    def apply_to(
        self,
        samples: SampleCollection,
        label_field: str = "predictions",
        confidence_thresh: float | None = None,
        classes: Iterable[str] | None = None,
    ) -> None:
        """Do what `samples.apply_model` does, but send the image files as they are.

        `apply_model` reads the images of a batch itself, and skips the whole batch if one is damaged. Here each image
        fails by itself, and requests are in flight all the time, not batch by batch.
        """
        paths = samples.values("filepath")
        labels = self._labels(map(Path, paths), paths)
        for sample, label in zip(samples.iter_samples(autosave=True), labels, strict=True):
            sample.add_labels(label, label_field, confidence_thresh=confidence_thresh, classes=classes)

    def _labels(self, images: Iterable[ImageLike], names: Iterable[str]) -> Iterator[fo.Label | None]:
        prompts = self._ontology.prompts
        answered = ask_each(self._client, images, prompts, concurrency=self._concurrency, **self._options)
        for results, name in zip(answered, names, strict=False):
            yield self._label(results) if self._tolerance.settle(name, results) else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _label(self, results: Results[Any]) -> fo.Label:
        task = self._ontology.task.known
        if task is None or task.grammar is Grammar.TEXT:
            [result] = results
            if task or not result.objects:
                confidence = next(iter(result.confidences), None)
                return fo.Classification(label=plain_text(result.answer.text), confidence=confidence)
        size = results[0].image_size
        found = self._ontology.objects(results)
        if task and task.grammar in (Grammar.OCR, Grammar.POLYGONS):
            return fo.Polylines(polylines=[_polyline(name, one, size) for name, one in found])
        return fo.Detections(detections=[_detection(name, one, size) for name, one in found])


def _polyline(name: str, found: Found, size: tuple[int, int]) -> fo.Polyline:
    width, height = size
    points = [[(x / width, y / height) for x, y in polygon] for polygon in found.polygons]
    return fo.Polyline(label=name, points=points, closed=True, filled=True, confidence=found.confidence)


def _detection(name: str, found: Found, size: tuple[int, int]) -> fo.Detection:
    width, height = size
    x1, y1, x2, y2 = found.box
    fields: dict[str, Any] = {}
    if found.shape is not Shape.BOX:
        # FiftyOne stretches a mask over the box, so both are cut at whole pixels.
        x1, y1, x2, y2 = (float(edge) for edge in (np.floor(x1), np.floor(y1), np.ceil(x2), np.ceil(y2)))
        mask = mask_of(found, size)[int(y1) : int(y2), int(x1) : int(x2)]
        fields = {"mask": mask} if mask.any() else {}
    box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
    return fo.Detection(label=name or None, bounding_box=box, confidence=found.confidence, **fields)
