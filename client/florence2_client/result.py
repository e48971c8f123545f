"""Result: what a caller gets back, read from the ensemble's output tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from florence2.errors import InternalError
from florence2.results import Answer, answer_from_json
from florence2.tasks import TASKS, Grammar
from florence2_client.drawing import draw
from florence2_client.pictures import Picture


@dataclass(frozen=True)
class Result:
    """One answer. Coordinates are pixels of a picture of `image_size`, EXIF orientation applied."""

    task: str  # the task token, or the raw prompt
    answer: Answer
    text: str  # as generated, location tokens kept
    finish_reason: str  # "stop", or "length" when it was cut off
    num_tokens: int
    score: float  # of the whole sequence, as transformers' `sequences_scores`
    image_size: tuple[int, int]  # width, height

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; the answer is shaped as transformers' `post_process_generation`."""
        return {
            "task": self.task,
            "answer": self.answer.to_json(),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "num_tokens": self.num_tokens,
            "score": self.score,
            "image_size": list(self.image_size),
        }

    def draw(self, picture: Picture) -> Image.Image:
        """The picture that was asked about, with this answer drawn on it."""
        return draw(picture, self.answer)


def result_from_tensors(outputs: Mapping[str, np.ndarray[Any, Any] | None]) -> Result:
    """Reads the ensemble's outputs. Raises InternalError if they are not those of Florence-2."""
    try:
        values = {name: array.reshape(-1) for name, array in outputs.items() if array is not None}
        [(task, answer)] = json.loads(values["RESULT"][0]).items()
        grammar = TASKS[task].grammar if task in TASKS else Grammar.TEXT
        width, height = values["IMAGE_SIZE"]
        return Result(
            task=task,
            answer=answer_from_json(grammar, answer),
            text=values["GENERATED_TEXT"][0].decode("utf-8"),
            finish_reason=values["FINISH_REASON"][0].decode("utf-8"),
            num_tokens=int(values["NUM_TOKENS"][0]),
            score=float(values["SEQUENCE_SCORE"][0]),
            image_size=(int(width), int(height)),
        )
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise InternalError("the model's answer is not one of Florence-2; is its name right?") from error
