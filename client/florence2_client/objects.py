"""Objects found in an image: one form for all tasks, and its conversions to COCO, YOLO and supervision."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.locations import LOCATION_TOKEN
from florence2.parsing import parse, pieces_from_text
from florence2.tasks import Grammar
from florence2_client.masks import coco_mask, masks_of

if TYPE_CHECKING:
    import supervision

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]

LOCATIONS = re.compile(f"(?<!>)(?:{LOCATION_TOKEN})+")  # a run of them, but not after a `<poly>`
_STRUCTURE = re.compile(f"(?:{LOCATION_TOKEN}|</?poly>|<sep>|<and>)+")


class Shape(enum.Enum):
    """The form in which the model locates an object."""

    BOX = "box"
    QUAD = "quad"  # a line of text
    POLYGON = "polygon"


@dataclass(frozen=True)
class Found:
    """An object in the image. Coordinates are pixels of the image as displayed.

    >>> star = client.detect("scene.png").objects[0]
    >>> star.label, star.shape.value, star.polygons
    ('star', 'box', ())
    """

    label: str  # "" if the task gives none
    box: Box  # x1, y1, x2, y2 around the whole object
    shape: Shape = Shape.BOX
    score: float | None = None  # from tasks that answer with boxes
    polygons: tuple[tuple[Point, ...], ...] = ()  # one of four corners for QUAD, one or more for POLYGON
    confidence: float | None = None  # the probability that it is right; None if it was read from a text


def found_in(answer: Answer, size: tuple[int, int]) -> list[Found]:
    """Return the objects that an answer locates in an image of `size` (width, height)."""
    match parsed(answer, size):
        case Boxes() as boxes:
            return _boxes(boxes.bboxes, boxes.labels, boxes.scores, boxes.confidences)
        case Quads() as quads:
            lines = [[quad] for quad in quads.quad_boxes]
            return _outlines(Shape.QUAD, lines, quads.labels, quads.confidences)
        case Polygons() as polygons:
            return _outlines(Shape.POLYGON, polygons.polygons, polygons.labels, polygons.confidences)
        case BoxesAndPolygons() as both:
            boxes_first = _boxes(both.bboxes, both.bboxes_labels, both.scores, both.confidences)
            return boxes_first + _outlines(
                Shape.POLYGON, both.polygons, both.polygons_labels, both.polygons_confidences
            )
        case TextAnswer():
            return []


def parsed(answer: Answer, size: tuple[int, int]) -> Answer:
    """Return the boxes and polygons in a text answer: region tasks append them, prompts of fine-tunes may ask for any.

    Every four locations are a box, unless they stand between polygon marks. A run of locations that is not made of
    whole boxes is something else, such as a point, and left out. Other answers, and text without any, stay as they are.
    """
    if not isinstance(answer, TextAnswer):
        return answer
    whole = LOCATIONS.sub(lambda run: "<loc_0>" if run[0].count("<") % 4 else run[0], answer.text)  # one is no box
    found = parse(Grammar.BOXES_OR_POLYGONS, pieces_from_text(whole), size, ())
    return found if isinstance(found, BoxesAndPolygons) and (found.bboxes or found.polygons) else answer


def plain_text(text: str) -> str:
    """Return a text answer without location tokens, which region tasks append: `car<loc_1><loc_2><loc_3><loc_4>`."""
    return _STRUCTURE.sub(" ", text).strip()


def _boxes(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    scores: Sequence[float] | None,
    confidences: Sequence[float] | None,
) -> list[Found]:
    """Sort the corners, which the model may have given in any order."""
    unknown: list[None] = [None] * len(boxes)
    rows = zip(boxes, labels, scores or unknown, confidences or unknown, strict=True)
    return [
        Found(label, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), score=score, confidence=confidence)
        for (x1, y1, x2, y2), label, score, confidence in rows
    ]


def _outlines(
    shape: Shape,
    instances: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[str],
    confidences: Sequence[float] | None,
) -> list[Found]:
    """Leave out instances without a single point."""
    unknown: list[None] = [None] * len(instances)
    found = []
    for instance, label, confidence in zip(instances, labels, confidences or unknown, strict=True):
        polygons = tuple(tuple(zip(flat[0::2], flat[1::2], strict=True)) for flat in instance)
        if any(polygons):
            xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
            box = min(xs), min(ys), max(xs), max(ys)
            found.append(Found(label, box, shape, polygons=polygons, confidence=confidence))
    return found


# ---- formats of other tools


def numbered(labels: Iterable[str], first: int = 0) -> dict[str, int]:
    """Return a number for each label, counted from `first` in order of appearance."""
    return {label: number for number, label in enumerate(dict.fromkeys(labels), first)}


def coco_dataset(
    images: Sequence[tuple[str, tuple[int, int], Sequence[Found]]], categories: Mapping[str, int], *, rle: bool = False
) -> dict[str, Any]:
    """Return a COCO data set of images: file name, (width, height) and objects each. `rle`: masks of all, in RLE."""
    annotations = (
        coco_annotation(found, image_id, categories[found.label], size, rle=rle)
        for image_id, (_, size, objects) in enumerate(images, 1)
        for found in objects
    )
    return {
        "images": [coco_image(image_id, name, size) for image_id, (name, size, _) in enumerate(images, 1)],
        "annotations": [{"id": number} | annotation for number, annotation in enumerate(annotations, 1)],
        "categories": coco_categories(categories),
    }


def coco_image(image_id: int, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return an item of `images`."""
    return {"id": image_id, "file_name": file_name, "width": size[0], "height": size[1]}


def coco_categories(categories: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return `categories` from label -> number."""
    return [{"id": number, "name": label} for label, number in categories.items()]


def coco_annotation(
    found: Found, image_id: int, category_id: int, size: tuple[int, int], *, rle: bool = False
) -> dict[str, Any]:
    """Return an item of `annotations`, without its `id`, for an image of `size` (width, height).

    `bbox` is x, y, width, height; `score` is the confidence. rle: give the object a mask, run-length encoded. Numbers
    have four decimals: a bin's middle, in thousandths of a side and half of one, needs no more.
    """
    x1, y1, x2, y2 = found.box
    polygons = [polygon for polygon in found.polygons if len(polygon) >= 3]  # pycocotools rejects others
    area = sum(map(polygon_area, polygons)) if polygons else (x2 - x1) * (y2 - y1)
    annotation = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(number, 4) for number in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(area, 4),
        "segmentation": [[round(number, 4) for point in polygon for number in point] for polygon in polygons],
        "iscrowd": 0,
    }
    if rle:
        annotation |= coco_mask(found, size)
    return annotation if found.confidence is None else annotation | {"score": found.confidence}


def polygon_area(polygon: Sequence[Point]) -> float:
    """Return the area by the shoelace formula."""
    shifted = [*polygon[1:], *polygon[:1]]
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(polygon, shifted, strict=True))) / 2


def yolo_lines(objects: Iterable[Found], classes: Mapping[str, int], size: tuple[int, int]) -> list[str]:
    """Return YOLO label lines, in fractions of the image's width and height.

    A box is `class x y width height` with its center, a polygon `class x1 y1 x2 y2 ...`. A line holds one polygon, so
    an object of several polygons takes several lines.
    """
    width, height = size
    lines = []
    for found in objects:
        if found.label not in classes:
            continue
        x1, y1, x2, y2 = found.box
        box = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        outlines = [
            [coordinate for x, y in polygon for coordinate in (x / width, y / height)]
            for polygon in found.polygons
            if len(polygon) >= 3
        ]
        lines += [
            " ".join([str(classes[found.label]), *(f"{number:.6f}" for number in numbers)])
            for numbers in outlines or [box]
        ]
    return lines


def supervision_detections(objects: Sequence[Found], size: tuple[int, int]) -> supervision.Detections:
    """Return what `Detections.from_vlm` returns, and also confidences, class numbers and all polygons.

    Objects with polygons have masks, bool [n, height, width]; lines of text have their corners.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
    if not objects:
        return supervision.Detections.empty()
    labels = [found.label for found in objects]
    numbers = numbered(labels)
    data: dict[str, Any] = {"class_name": np.array(labels)}
    if all(found.shape is Shape.QUAD for found in objects):
        corners = [found.polygons[0] for found in objects]
        data[supervision.config.ORIENTED_BOX_COORDINATES] = np.array(corners, dtype=np.float32)
    confidences = [found.confidence for found in objects]
    masks = None
    if any(found.shape is Shape.POLYGON for found in objects):
        masks = masks_of(objects, size)
    return supervision.Detections(
        xyxy=np.array([found.box for found in objects], dtype=np.float32),
        mask=masks,
        confidence=None if None in confidences else np.array(confidences, dtype=np.float32),
        class_id=np.array([numbers[label] for label in labels]),
        data=data,
    )
