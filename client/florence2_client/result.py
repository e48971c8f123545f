"""Result: an answer and what is known about it, read from the ensemble's output tensors."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from florence2.answers import FORMS, Answer, TextAnswer, answer_from_json, at_least
from florence2.errors import Florence2Error, InternalError, InvalidOption
from florence2.parsing import parse, pieces_from_text
from florence2.tasks import TASKS, Grammar, TaskInput
from florence2_client.drawing import draw
from florence2_client.images import ImageLike
from florence2_client.located import Located
from florence2_client.objects import LOCATIONS, Found, found_in, parsed
from florence2_client.request import require_share

AnswerT = TypeVar("AnswerT", bound=Answer, covariant=True)

COORDINATES = ("bboxes", "quad_boxes", "polygons")


@dataclass(frozen=True)
class Result(Located, Generic[AnswerT]):
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
    prompt_text: str | None = None  # the phrase, caption or region of the request
    # Not in `to_dict`, of which they would be the largest part:
    num_prompt_tokens: int | None = field(default=None, compare=False, repr=False)  # the image's and the prompt's
    token_log_probs: list[tuple[str, float]] = field(default_factory=list, compare=False, repr=False)

    @property
    def final(self) -> bool:
        """Return whether the answer is complete; of the results that `stream` yields, only the last one is.

        >>> client.caption("scene.png").final
        True
        """
        return self.finish_reason != ""

    @property
    def error(self) -> Florence2Error | None:
        """Return None. Only a request that failed, one of several that were sent together, has an error here.

        >>> [result.error for result in client.ask("scene.png", ["caption", "od"])]
        [None, None]
        """
        return None

    @property
    def objects(self) -> list[Found]:
        """Return everything the answer locates in the image, in one form for all tasks.

        Where the model gives no label, the phrase of the request is the label. Boxes and outlines in the text that
        answers a prompt of your own are found too: every four locations are a box. `read_as` reads other forms.

        >>> [found.label for found in client.ocr_with_region("scene.png").objects]
        ['HELLO', 'TRITON']
        >>> client.run("scene.png", Prompt("Locate the objects with category name in the image.")).labels
        ['star', 'triangle']
        """
        phrase = self.prompt_text if takes_phrase(self) else None
        found = [replace(one, label=one.label or phrase or "") for one in found_in(self.answer, self.image_size)]
        about_a_region = self.task in TASKS and TASKS[self.task].input is TaskInput.REGION
        if isinstance(self.answer, TextAnswer) and about_a_region and len(found) == len(self.confidences) == 1:
            return [replace(found[0], confidence=self.confidences[0])]
        return found

    @property
    def confidences(self) -> list[float]:
        """Return how sure the model is of each of `objects`, or of a text: the probability of all its tokens.

        Empty if the server gave none. docs/confidences.md says what they are.

        >>> [confidence > 0.5 for confidence in client.detect("scene.png").confidences]
        [True, True]
        >>> client.classify_region("scene.png", (70, 213, 614, 541)).confidences[0] > 0.5
        True
        """
        if isinstance(self.answer, TextAnswer):
            words = [number for text, number in self.token_log_probs if text and not LOCATIONS.fullmatch(text)]
            return [math.exp(sum(words))] if words else []
        return [found.confidence for found in self.objects if found.confidence is not None]

    def read_as(self, form: str) -> Result[Answer]:
        """Return the result with an answer of another form, read from the generated text: without scores.

        For prompts of fine-tunes, which the server answers with text. The forms are `text`, `boxes`, `quads`,
        `polygons` and `boxes_or_polygons`; raise InvalidOption on any other.

        >>> answer = client.run("scene.png", Prompt("What is the text in the image, with regions?"))
        >>> answer.read_as("quads").labels
        ['HELLO', 'TRITON']
        """
        if form not in FORMS:
            raise InvalidOption(f"there is no form {form!r}; the forms are {', '.join(FORMS)}")
        result: Result[Answer] = self
        return replace(result, answer=parse(FORMS[form], pieces_from_text(self.text), self.image_size, ()))

    def at_least(self, confidence: float) -> Result[AnswerT]:
        """Return the result without the objects of which the model is less sure; text stays as it is.

        Raise InvalidOption if the confidence is not a number from 0 to 1.

        >>> client.detect("scene.png").at_least(0.99).labels
        []
        """
        require_share("the confidence", confidence)
        return replace(self, answer=at_least(self.answer, confidence))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON; the answer has the shape of transformers' `post_process_generation`.

        `parsed`: the boxes and outlines that a text answer contains, in the shape of open-vocabulary detection.

        >>> list(client.detect("scene.png").to_dict()["answer"])
        ['bboxes', 'labels', 'scores', 'confidences']
        """
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.compare}
        values |= {"answer": self.answer.to_json(), "image_size": list(self.image_size)}
        in_text = parsed(self.answer, self.image_size)
        if in_text is not self.answer:
            values["parsed"] = in_text.to_json()
        if self.prompt_text is None:
            del values["prompt_text"]
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Result[Answer]:
        """Return the result that `to_dict` made `values` from. Raise InternalError if they are something else.

        >>> result = client.detect("scene.png")
        >>> Result.from_dict(result.to_dict()) == result
        True
        """
        try:
            task, (width, height) = values["task"], values["image_size"]
            grammar = TASKS[task].grammar if task in TASKS else None
            rest = {name: values[name] for name in ("text", "finish_reason", "num_tokens", "score")}
            return Result(
                task,
                answer_from_json(grammar, values["answer"]),
                image_size=(width, height),
                prompt_text=values.get("prompt_text"),
                **rest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError("this is not the answer of a Florence-2 server") from error

    def draw(self, image: ImageLike) -> Image.Image:
        """Return the image with this answer drawn on it.

        >>> client.detect("scene.png").draw("scene.png").save("found.png")
        """
        return draw(image, self.answer)

    def _located(self) -> tuple[list[Found], tuple[int, int]]:
        return self.objects, self.image_size


def takes_phrase(result: Result[Any]) -> bool:
    """Return whether the request had a phrase that says what to find, which is the label of everything it found."""
    task = TASKS.get(result.task)
    return task is not None and task.input is TaskInput.TEXT and task.grammar is not Grammar.GROUNDING


def result_from_tensors(
    outputs: Mapping[str, np.ndarray[Any, Any] | None],
    image_size: tuple[int, int] | None = None,
    prompt_text: str | None = None,
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
                "prompt_text": prompt_text,
            }
        )
        if "TOKEN_LOG_PROBS" in values:  # servers of earlier versions have none
            pairs = [(str(text), float(number)) for text, number in json.loads(values["TOKEN_LOG_PROBS"][0])]
            result = replace(result, num_prompt_tokens=int(values["NUM_PROMPT_TOKENS"][0]), token_log_probs=pairs)
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
        answer = replace(answer, **scaled)
    return replace(result, answer=answer, image_size=size)


def _scaled(values: list[Any], factors: tuple[float, ...]) -> list[Any]:
    """Multiply lists of x, y, x, y, ... at any depth by the factors of x and y."""
    if values and isinstance(values[0], list):
        return [_scaled(inner, factors) for inner in values]
    return [value * factors[place % 2] for place, value in enumerate(values)]
