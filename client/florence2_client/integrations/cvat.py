"""An auto-annotation function for CVAT: `cvat-cli` loads this module and calls `create` with the parameters of `-p`.

docs/integrations.md has the commands.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import PIL.Image
from cvat_sdk import models
from cvat_sdk.masks import encode_mask

from florence2.errors import InvalidOption, InvalidPrompt
from florence2.tasks import Grammar
from florence2_client.client import Client
from florence2_client.masks import mask_of
from florence2_client.methods import DEFAULT_MODEL
from florence2_client.objects import Found, plain_text
from florence2_client.ontology import WITHOUT_CLASSES, Ontology, Tolerance, ask_each
from florence2_client.request import Options, require_share
from florence2_client.transports import DEFAULT_URL

SHAPES = ("rectangle", "polygon", "mask")
TEXT = 1  # the id of the attribute that holds a text
LONGEST_TEXT = 4096  # characters that CVAT accepts as an attribute's value
RETRY_SECONDS = 120.0  # CVAT stores nothing until all images are done, so a restart of the server must not end it


def create(
    url: str = DEFAULT_URL,
    labels: str = "",
    task: str = "open_vocabulary_detection",
    shape: str = "",
    unknown: str = "",
    min_confidence: float = 0.0,
    attribute: str = "text",
    model: str = DEFAULT_MODEL,
    retry_for: float = RETRY_SECONDS,
    **options: Any,
) -> Florence2Function:
    """Return the function. `cvat-cli` passes each `-p NAME=TYPE:VALUE` as an argument.

    labels: labels of the CVAT task, separated by commas; `a red car=car` looks for a phrase, or takes objects with that
    label of the model, and annotates them as `car`. shape: rectangle, polygon or mask; by default, what the task
    answers with. unknown: the label for objects that `labels` does not name; by default they are left out.
    min_confidence: the threshold if CVAT gives none. attribute: the text attribute for captions and OCR. options:
    generation options such as `num_beams`, and `timeout` and `tiles`.
    """
    require_share("min_confidence", min_confidence)
    ontology = Ontology.of(task, labels, unknown or None)
    if not ontology.classes:
        raise InvalidPrompt("labels of the CVAT task are needed: -p labels=str:car,person")
    if shape and shape not in SHAPES:
        raise InvalidOption(f"there is no shape {shape!r}; the shapes are {', '.join(SHAPES)}")
    if misspelled := sorted(options.keys() - Options.__annotations__.keys()):
        raise InvalidOption(
            f"there is no parameter {misspelled[0]!r}; options are {', '.join(Options.__annotations__)}"
        )
    client = Client(url, model, retry_for=retry_for)
    return Florence2Function(client, ontology, shape, min_confidence, attribute, options)


class Florence2Function:
    """A DetectionFunction of cvat_sdk.auto_annotation: rectangles, polygons, masks, or a tag with a text."""

    def __init__(
        self, client: Client, ontology: Ontology, shape: str, min_confidence: float, attribute: str, options: Any
    ) -> None:
        known = ontology.task.known
        grammar = known.grammar if known else Grammar.LABELED_BOXES
        self._client = client
        self._ontology = ontology
        self._min_confidence = min_confidence
        self._attribute = attribute
        self._options = options
        self._tags = grammar is Grammar.TEXT
        self._texts = self._tags or ontology.task.sent in WITHOUT_CLASSES - {"<REGION_PROPOSAL>"}
        outlined = grammar in (Grammar.OCR, Grammar.POLYGONS)
        self._type = "tag" if self._tags else shape or ("polygon" if outlined else "rectangle")
        self._tolerance = Tolerance()

    @cached_property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """Return the labels; CVAT matches them with those of its task by name."""
        attributes = [cvataa.text_attribute_spec(self._attribute, TEXT)] if self._texts else []
        return cvataa.DetectionFunctionSpec(
            labels=[
                cvataa.label_spec(name, number, type=self._type, attributes=attributes)
                for number, name in enumerate(self._ontology.classes)
            ]
        )

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[models.LabeledImageRequest | models.LabeledShapeRequest]:
        """Return the annotations of an image. If its requests failed, return none and log a warning."""
        [results] = ask_each(self._client, [image], self._ontology.prompts, **self._options)
        if not self._tolerance.settle(context.frame_name, results):
            return []
        least = self._min_confidence if context.conf_threshold is None else context.conf_threshold
        if self._tags:
            [result] = results
            sure = all(confidence >= least for confidence in result.confidences)
            return [cvataa.tag(0, attributes=self._text(result.answer.text))] if sure else []
        numbers = {name: number for number, name in enumerate(self._ontology.classes)}
        shapes: list[Any] = []
        for name, found in self._ontology.objects(results.at_least(least)):
            drawn = list(self._points(found, results[0].image_size, context.conv_mask_to_poly))
            fields: dict[str, Any] = {"attributes": self._text(found.label)} if self._texts else {}
            if found.confidence is not None:
                fields["score"] = found.confidence
            if len(drawn) > 1:  # polygons of one object; the number is unlikely to be taken in another image
                fields["group"] = zlib.crc32(f"{context.frame_name}/{len(shapes)}".encode()) // 2 or 1
            shapes += [cvataa.shape(numbers[name], type=kind, points=points, **fields) for kind, points in drawn]
        return shapes

    def _points(self, found: Found, size: tuple[int, int], as_polygons: bool) -> Iterator[tuple[str, list[float]]]:
        """Yield the type and points of an object's shapes: none if it covers nothing, several if it is in parts."""
        x1, y1, x2, y2 = found.box
        if self._type == "rectangle":
            if x1 < x2 and y1 < y2:
                yield "rectangle", [x1, y1, x2, y2]
        elif self._type == "mask" and not as_polygons:
            mask = mask_of(found, size)
            if mask.any():
                yield "mask", encode_mask(mask)
        else:
            for polygon in found.polygons or [((x1, y1), (x2, y1), (x2, y2), (x1, y2))]:
                if len(polygon) >= 3:
                    yield "polygon", [number for point in polygon for number in point]

    def _text(self, text: str) -> list[models.AttributeValRequest]:
        return [models.AttributeValRequest(spec_id=TEXT, value=plain_text(text)[:LONGEST_TEXT])]
