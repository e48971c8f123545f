"""Results: the answers to several requests about one image, each with its own error."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from PIL import Image

from florence2.answers import Answer, BoxesAndPolygons, TextAnswer
from florence2.errors import Florence2Error, InvalidPrompt, InvalidRequest
from florence2_client.images import ImageLike
from florence2_client.located import Located
from florence2_client.objects import Found, Shape
from florence2_client.result import Result, takes_phrase
from florence2_client.tasks import parse_task

AnswerT = TypeVar("AnswerT", bound=Answer)
FIELDS = frozenset(field.name for field in dataclasses.fields(Result))
MERGED_TASK = "<OPEN_VOCABULARY_DETECTION>"  # whose answers have labeled boxes and labeled outlines


class Failure(Result[Any]):
    """What stands in the place of a result if the request failed. Whatever is read from the answer raises `error`.

    >>> [failed] = client.ask("no-such.png", ["od"])
    >>> failed.error
    InvalidImage('there is no file no-such.png')
    """

    def __init__(self, task: str, prompt_text: str | None, error: Florence2Error) -> None:
        vars(self).update(task=task, prompt_text=prompt_text, _error=error)

    @property
    def error(self) -> Florence2Error:
        """Return why there is no answer.

        >>> client.find("no-such.png", ["a star"])[0].error.code
        'INVALID_IMAGE'
        """
        error: Florence2Error = vars(self)["_error"]
        return error

    def __getattr__(self, name: str) -> Any:
        if name in FIELDS:
            raise self.error
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"Failure(task={self.task!r}, prompt_text={self.prompt_text!r}, error={self.error!r})"

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Results(list[Result[AnswerT]], Located):
    """A list of results about one image, in the order of the requests.

    A request that failed has a result whose `error` is not None; the other results are not affected, and reading the
    answer that is missing raises its error. The objects of all results can be converted together, as those of one.

    >>> star, nothing = found = client.find("scene.png", ["the purple star", ""])
    >>> star.labels, nothing.error
    (['the purple star'], InvalidPrompt(...))
    """

    @property
    def errors(self) -> list[Florence2Error]:
        """Return the errors of the requests that failed.

        >>> client.ask("scene.png", ["caption", "ocr"]).errors
        []
        """
        return [result.error for result in self if result.error]

    @property
    def succeeded(self) -> Results[AnswerT]:
        """Return the results without those of requests that failed.

        >>> len(client.ask("scene.png", ["caption", "captoin"]).succeeded)
        1
        """
        return Results(result for result in self if not result.error)

    def at_least(self, confidence: float) -> Results[AnswerT]:
        """Return the results without the objects of which the model is less sure; failures and text stay.

        >>> client.find("scene.png", ["the purple star", "the green triangle"]).at_least(0.999).labels
        []
        """
        return Results(result if result.error else result.at_least(confidence) for result in self)

    @property
    def unmatched(self) -> list[str]:
        """Return the phrases, or tasks without one, whose answer locates nothing in the image.

        >>> client.find("scene.png", ["the purple star", "the green triangle"]).unmatched
        []
        """
        located = [result for result in self.succeeded if not isinstance(result.answer, TextAnswer)]
        return [result.prompt_text or result.task for result in located if not result.objects]

    @property
    def objects(self) -> list[Found]:
        """Return the objects of all results; the label of what a phrase found is that phrase. Raise the first error.

        >>> [found.label for found in client.find("scene.png", ["the purple star", "the green triangle"]).objects]
        ['the purple star', 'the green triangle']
        """
        objects = []
        for result in self:
            phrase = result.prompt_text if takes_phrase(result) else None
            objects += [dataclasses.replace(found, label=phrase or found.label) for found in result.objects]
        return objects

    def merged(self) -> Result[BoxesAndPolygons]:
        """Return one result with the objects of all, in the form of open-vocabulary detection. Raise the first error.

        >>> merged = client.find("scene.png", ["the purple star", "the green triangle"]).merged()
        >>> merged.answer.bboxes_labels
        ['the purple star', 'the green triangle']
        """
        objects, size = self._located()
        boxes = [found for found in objects if found.shape is Shape.BOX]
        outlined = [found for found in objects if found.shape is not Shape.BOX]
        scores = [found.score for found in boxes if found.score is not None]
        sure = [[found.confidence for found in part if found.confidence is not None] for part in (boxes, outlined)]
        known = sum(map(len, sure)) == len(objects)
        return Result(
            MERGED_TASK,
            BoxesAndPolygons(
                [list(found.box) for found in boxes],
                [found.label for found in boxes],
                [[[number for point in polygon for number in point] for polygon in one.polygons] for one in outlined],
                [found.label for found in outlined],
                scores if len(scores) == len(boxes) else None,
                *(sure if known else ()),
            ),
            text="\n".join(result.text for result in self),
            finish_reason="length" if any(result.finish_reason == "length" for result in self) else "stop",
            num_tokens=sum(result.num_tokens for result in self),
            score=sum(result.score for result in self) / len(self),
            image_size=size,
        )

    def draw(self, image: ImageLike) -> Image.Image:
        """Return the image with the objects of all results drawn on it. Raise the first error.

        >>> client.find("scene.png", ["the purple star", "the green triangle"]).draw("scene.png").save("found.png")
        """
        return self.merged().draw(image)

    def _located(self) -> tuple[list[Found], tuple[int, int]]:
        objects = self.objects
        sizes = {result.image_size for result in self}
        if len(sizes) != 1:
            raise InvalidRequest("results of images of different sizes have no common form" if sizes else "no results")
        return objects, sizes.pop()


def failure(task: str, text: Any, error: Florence2Error) -> Failure:
    """Return what stands for the result of a request, whose `task` is the token if the task is known."""
    try:
        known = parse_task(task).known
    except InvalidPrompt:
        known = None
    return Failure(known.token if known else str(task), None if text is None else str(text), error)
