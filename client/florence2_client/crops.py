"""Crops: a request for each of many small parts of an image, such as the icons of a screenshot."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from florence2.errors import InvalidPrompt
from florence2_client.exchange import Question, Reply, shared_timeout
from florence2_client.images import ImageLike, decoded_image
from florence2_client.request import Options
from florence2_client.result import Result
from florence2_client.results import Results, failure

CROPS_IN_FLIGHT = 32  # small requests: the decoder's 24 rows of one beam, and a batch of the encoder


class Crops:
    """The requests for the boxes of one image, and their results in the order of the boxes."""

    def __init__(self, image: ImageLike, boxes: Iterable[Any], task: str, options: Options) -> None:
        """Read the image. Raise InvalidImage if it cannot be decoded."""
        self._image = decoded_image(image)
        self._task = task
        self._options = options
        self._left = shared_timeout(options)
        self._boxes: list[tuple[int, int, int, int] | InvalidPrompt] = []
        for box in boxes:
            try:
                self._boxes.append(pixels_of(box, self._image.size))
            except InvalidPrompt as error:
                self._boxes.append(error)

    def questions(self) -> Iterator[Question]:
        """Yield a question for each box that lies in the image. A crop is cut out when its turn comes."""
        for number, box in enumerate(self._boxes):
            if not isinstance(box, InvalidPrompt):
                crop = self._image.crop(box)
                yield Question(crop, self._task, None, number, {**self._options, **self._left()})

    def results(self, replies: Iterable[Reply]) -> Results[Any]:
        """Return a result for each box."""
        answered = {reply.question.key: reply.as_result() for reply in replies}
        results: Iterator[Result[Any]] = (
            failure(self._task, None, box) if isinstance(box, InvalidPrompt) else answered[number]
            for number, box in enumerate(self._boxes)
        )
        return Results(results)


def pixels_of(box: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the whole pixels that a box (x1, y1, x2, y2) touches, as far as they are in an image of `size`.

    Raise InvalidPrompt if there are none.
    """
    try:
        x1, y1, x2, y2 = (float(number) for number in (box.split(",") if isinstance(box, str) else box))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidPrompt(f"a box is four numbers x1, y1, x2, y2, not {reprlib.repr(box)}") from error
    if not np.isfinite([x1, y1, x2, y2]).all() or x1 > x2 or y1 > y2:
        raise InvalidPrompt(f"a box is x1, y1, x2, y2 with the upper left corner first, not {reprlib.repr(box)}")
    if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
        raise InvalidPrompt(f"the box lies outside the image, which has {size[0]} x {size[1]} pixels")
    left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
    return left, top, min(size[0], max(left + 1, math.ceil(x2))), min(size[1], max(top + 1, math.ceil(y2)))
