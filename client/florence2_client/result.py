"""Result: an answer and what is known about it, read from the ensemble's output tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from PIL import Image

from florence2.answers import Answer, TextAnswer, answer_from_json
from florence2.errors import InternalError
from florence2.tasks import TASKS, Grammar
from florence2_client.drawing import draw
from florence2_client.images import ImageLike
from florence2_client.objects import Found, coco_dataset, found_in, supervision_detections, yolo_lines

if TYPE_CHECKING:
    import supervision

AnswerT = TypeVar("AnswerT", bound=Answer, covariant=True)

COORDINATES = ("bboxes", "quad_boxes", "polygons")


@dataclass(frozen=True)
class Result(Generic[AnswerT]):
    """One answer. Coordinates are pixels of an image of `image_size`, with EXIF orientation applied.

    >>> result = client.caption("scene.png")
    >>> result.answer.text
    'a purple star and a green triangle with the text HELLO and TRITON'
    >>> result.task, result.finish_reason, result.image_size
    ('<CAPTION>', 'stop', (768, 768))
    """

    task: str  # the task token, or the raw prompt
    answer: AnswerT
    text: str  # as generated, with location tokens
    finish_reason: str  # "stop", or "length" if it was cut off; empty until a streamed answer is complete
    num_tokens: int
    score: float  # of the whole sequence, like transformers' `sequences_scores`
    image_size: tuple[int, int]  # width, height

    @property
    def final(self) -> bool:
        """Return whether the answer is complete; of the results that `stream` yields, only the last one is.

        >>> client.caption("scene.png").final
        True
        """
        return self.finish_reason != ""

    @property
    def objects(self) -> list[Found]:
        """Return everything the answer locates in the image, in one form for all tasks.

        >>> [found.label for found in client.ocr_with_region("scene.png").objects]
        ['HELLO', 'TRITON']
        """
        return found_in(self.answer, self.image_size)

    @property
    def labels(self) -> list[str]:
        """Return the label of each object, in order and with repetitions.

        >>> client.detect("scene.png").labels
        ['star', 'triangle']
        """
        return [found.label for found in self.objects]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON; the answer has the shape of transformers' `post_process_generation`.

        >>> list(client.detect("scene.png").to_dict()["answer"])
        ['bboxes', 'labels', 'scores']
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "answer": self.answer.to_json(),
            "image_size": list(self.image_size),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Result[Answer]:
        """Return the result that `to_dict` made `values` from. Raise InternalError if they are something else.

        >>> result = client.detect("scene.png")
        >>> Result.from_dict(result.to_dict()) == result
        True
        """
        try:
            task, (width, height) = values["task"], values["image_size"]
            grammar = TASKS[task].grammar if task in TASKS else Grammar.TEXT
            rest = {name: values[name] for name in ("text", "finish_reason", "num_tokens", "score")}
            return Result(task, answer_from_json(grammar, values["answer"]), image_size=(width, height), **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError("this is not the answer of a Florence-2 server") from error

    def draw(self, image: ImageLike) -> Image.Image:
        """Return the image with this answer drawn on it.

        >>> client.detect("scene.png").draw("scene.png").save("found.png")
        """
        return draw(image, self.answer)

    def to_supervision(self) -> supervision.Detections:
        """Return the objects as `supervision.Detections`; needs the package supervision.

        >>> detections = client.detect("scene.png").to_supervision()
        >>> detections.data["class_name"].tolist(), detections.class_id.tolist()
        (['star', 'triangle'], [0, 1])
        """
        return supervision_detections(self.objects, self.image_size)

    def to_coco(self, file_name: str = "") -> dict[str, Any]:
        """Return a COCO detection data set of this one image, with a category per label.

        >>> coco = client.detect("scene.png").to_coco("scene.png")
        >>> [category["name"] for category in coco["categories"]], len(coco["annotations"])
        (['star', 'triangle'], 2)
        """
        return coco_dataset(self.objects, file_name, self.image_size)

    def to_yolo(self, classes: Sequence[str]) -> list[str]:
        """Return the lines of a YOLO label file. Classes are numbered as in `classes`; other labels are left out.

        >>> len(client.detect("scene.png").to_yolo(["circle", "star"]))
        1
        """
        return yolo_lines(self.objects, {label: index for index, label in enumerate(classes)}, self.image_size)


def result_from_tensors(
    outputs: Mapping[str, np.ndarray[Any, Any] | None], image_size: tuple[int, int] | None = None
) -> Result[Answer]:
    """Return the result in the ensemble's outputs, scaled to `image_size` if a smaller image was sent.

    Raise InternalError if they are not the outputs of Florence-2.
    """
    try:
        values = {name: array.reshape(-1) for name, array in outputs.items() if array is not None}
        [(task, answer)] = json.loads(values["RESULT"][0]).items()
        width, height = values["IMAGE_SIZE"]
        result = Result.from_dict(
            {
                "task": task,
                "answer": answer,
                "text": values["GENERATED_TEXT"][0].decode("utf-8"),
                "finish_reason": values["FINISH_REASON"][0].decode("utf-8"),
                "num_tokens": int(values["NUM_TOKENS"][0]),
                "score": float(values["SEQUENCE_SCORE"][0]),
                "image_size": (int(width), int(height)),
            }
        )
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, InternalError) as error:
        raise InternalError("the model's outputs are not those of Florence-2; is its name right?") from error
    return result if image_size in (None, result.image_size) else _resized(result, image_size)


def _resized(result: Result[Answer], size: tuple[int, int]) -> Result[Answer]:
    """Return the same answer in pixels of an image of another size. Location tokens in text fit any size."""
    answer: Answer = result.answer
    if not isinstance(answer, TextAnswer):
        factors = tuple(new / old for new, old in zip(size, result.image_size, strict=True))
        coordinates = {name: getattr(answer, name) for name in COORDINATES if hasattr(answer, name)}
        scaled: dict[str, Any] = {name: _scaled(value, factors) for name, value in coordinates.items()}
        answer = dataclasses.replace(answer, **scaled)
    return dataclasses.replace(result, answer=answer, image_size=size)


def _scaled(values: list[Any], factors: tuple[float, ...]) -> list[Any]:
    """Multiply lists of x, y, x, y, ... at any depth by the factors of x and y."""
    if values and isinstance(values[0], list):
        return [_scaled(inner, factors) for inner in values]
    return [value * factors[place % 2] for place, value in enumerate(values)]
