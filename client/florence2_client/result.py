"""Result: what a caller gets back, read from the ensemble's output tensors."""

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
from florence2_client import formats
from florence2_client.drawing import draw
from florence2_client.images import Picture
from florence2_client.objects import Found, found_in

if TYPE_CHECKING:
    import supervision

AnswerT = TypeVar("AnswerT", bound=Answer, covariant=True)

COORDINATES = ("bboxes", "quad_boxes", "polygons")


@dataclass(frozen=True)
class Result(Generic[AnswerT]):
    """One answer, frozen. Coordinates are pixels of a picture of `image_size`, EXIF orientation applied.

    >>> result = client.caption("scene.png")
    >>> result.answer.text
    'a purple star and a green triangle with the text HELLO and TRITON'
    >>> result.task, result.finish_reason, result.image_size
    ('<CAPTION>', 'stop', (768, 768))
    """

    task: str  # the task token, or the raw prompt
    answer: AnswerT
    text: str  # as generated, location tokens kept
    finish_reason: str  # "stop", or "length" when it was cut off; empty while a streamed answer goes on
    num_tokens: int
    score: float  # of the whole sequence, as transformers' `sequences_scores`
    image_size: tuple[int, int]  # width, height

    @property
    def final(self) -> bool:
        """Whether the answer is complete. Of those that `stream` yields only the last one is.

        >>> client.caption("scene.png").final
        True
        """
        return self.finish_reason != ""

    @property
    def objects(self) -> list[Found]:
        """All things found with a place, in one form whatever the task.

        >>> [found.label for found in client.ocr_with_region("scene.png").objects]
        ['HELLO', 'TRITON']
        """
        return found_in(self.answer, self.image_size)

    @property
    def labels(self) -> list[str]:
        """The label of every object, in order and with repetitions.

        >>> client.detect("scene.png").labels
        ['star', 'triangle']
        """
        return [found.label for found in self.objects]

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; the answer is shaped as transformers' `post_process_generation`.

        >>> list(client.detect("scene.png").to_dict()["answer"])
        ['bboxes', 'labels', 'scores']
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "answer": self.answer.to_json(),
            "image_size": list(self.image_size),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Result[Answer]:
        """What `to_dict` made, such as a line of a batch run. Raises InternalError if it is something else.

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

    def draw(self, picture: Picture) -> Image.Image:
        """The picture that was asked about, with this answer drawn on it.

        >>> client.detect("scene.png").draw("scene.png").save("found.png")
        """
        return draw(picture, self.answer)

    def to_supervision(self) -> supervision.Detections:
        """The objects as `supervision.Detections`; needs the package supervision.

        >>> detections = client.detect("scene.png").to_supervision()
        >>> detections.data["class_name"].tolist(), detections.class_id.tolist()
        (['star', 'triangle'], [0, 1])
        """
        return formats.supervision_detections(self.objects, self.image_size)

    def to_coco(self, file_name: str = "") -> dict[str, Any]:
        """A COCO detection data set of this one picture, with a category per label.

        >>> coco = client.detect("scene.png").to_coco("scene.png")
        >>> [category["name"] for category in coco["categories"]], len(coco["annotations"])
        (['star', 'triangle'], 2)
        """
        return formats.coco_dataset(self.objects, file_name, self.image_size)

    def to_yolo(self, classes: Sequence[str]) -> list[str]:
        """Lines of a YOLO label file; a class's number is its place in `classes`. Other labels are left out.

        >>> len(client.detect("scene.png").to_yolo(["circle", "star"]))
        1
        """
        return formats.yolo_lines(self.objects, {label: index for index, label in enumerate(classes)}, self.image_size)


def result_from_tensors(
    outputs: Mapping[str, np.ndarray[Any, Any] | None], picture_size: tuple[int, int] | None = None
) -> Result[Answer]:
    """Reads the ensemble's outputs, scaled to a picture of `picture_size` if a smaller one was sent.

    Raises InternalError if they are not those of Florence-2.
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
        raise InternalError("the model's answer is not one of Florence-2; is its name right?") from error
    return result if picture_size in (None, result.image_size) else _resized(result, picture_size)


def _resized(result: Result[Answer], size: tuple[int, int]) -> Result[Answer]:
    """The same answer in pixels of a picture of another size. Region tokens in a text fit any size."""
    answer: Answer = result.answer
    if not isinstance(answer, TextAnswer):
        factors = tuple(new / old for new, old in zip(size, result.image_size, strict=True))
        coordinates = {name: getattr(answer, name) for name in COORDINATES if hasattr(answer, name)}
        scaled: dict[str, Any] = {name: _scaled(value, factors) for name, value in coordinates.items()}
        answer = dataclasses.replace(answer, **scaled)
    return dataclasses.replace(result, answer=answer, image_size=size)


def _scaled(values: list[Any], factors: tuple[float, ...]) -> list[Any]:
    """Lists of x, y, x, y, ... at any depth, times the factors of x and y."""
    if values and isinstance(values[0], list):
        return [_scaled(inner, factors) for inner in values]
    return [value * factors[place % 2] for place, value in enumerate(values)]
