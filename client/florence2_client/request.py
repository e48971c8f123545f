"""What a request is on the wire: the ensemble's input tensors, one element each. No network here."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np

from florence2.errors import InvalidOption, InvalidPrompt
from florence2.tasks import task_from_name
from florence2_client.images import Picture, encoded_picture, shrunk_picture

Tensors: TypeAlias = "dict[str, np.ndarray[Any, Any]]"
Region: TypeAlias = "str | Sequence[float] | np.ndarray[Any, Any]"

INT32 = np.iinfo(np.int32)
LONGEST_TIMEOUT = 24 * 60 * 60  # seconds
REGION = re.compile(r"\s*[-+.\deE]+\s*(,\s*[-+.\deE]+\s*){3}")


class Options(TypedDict, total=False):
    """What every request takes by name. What is left out, or None, is as the checkpoint or the client has it."""

    # generated: options
    max_new_tokens: int | None  # generate at most this many tokens; more than the model's positions means all of them
    num_beams: int | None  # beams of the search; 1 is greedy
    no_repeat_ngram_size: int | None  # let no sequence of this many tokens occur twice; 0 turns the rule off
    length_penalty: float | None  # with beams, favor longer answers if above 0 and shorter ones if below
    early_stopping: bool | None  # with beams, stop as soon as there are as many answers as beams
    min_new_tokens: int | None  # generate at least this many tokens
    repetition_penalty: float | None  # make generated tokens less likely to come again if above 1, more likely if below
    # end of generated: options
    timeout: float | None  # seconds for all of it, retries included
    max_side: int | None  # pictures with a longer side are scaled down before they are sent


@dataclass(frozen=True)
class Request:
    """Ready to be sent. `picture_size` is the (width, height) that answers are to be given in, where that is not the
    size of the picture that was sent.
    """

    tensors: Tensors
    timeout: float | None
    picture_size: tuple[int, int] | None


def build_request(
    image: Picture,
    task: str,
    text: Region | None = None,
    *,
    timeout: float | None = None,
    max_side: int | None = None,
    **generation: Any,
) -> Request:
    """Reads and encodes the picture, and turns the rest into tensors [1]: IMAGE, TASK, and what the caller gave.

    A task name (`od`) becomes its token; a prompt that is no task is passed on as it is. Raises InvalidImage,
    InvalidPrompt and InvalidOption on what has no tensor; whether it makes sense is the server's to say.
    """
    if timeout is not None and not (math.isfinite(timeout) and 0 < timeout <= LONGEST_TIMEOUT):
        raise InvalidOption(f"timeout must be above 0 and at most {LONGEST_TIMEOUT} seconds, not {timeout}")
    known = task_from_name(task)
    words = text if text is None or isinstance(text, str) else _region_text(text)
    picture_size = None
    if max_side is None:
        picture = encoded_picture(image)
    else:
        picture, scale, picture_size = shrunk_picture(image, max_side)
        words = _scaled_region(words, scale)
    tensors = {"IMAGE": _bytes_tensor(picture), "TASK": _text_tensor("task", known.token if known else task)}
    if words is not None:
        tensors["TEXT"] = _text_tensor("text", words)
    for option, value in generation.items():
        if option not in Options.__annotations__:
            raise TypeError(f"there is no option {option!r}")
        if value is not None:
            tensors[option.upper()] = _option_tensor(option, value)
    return Request(tensors, timeout, picture_size)


def _region_text(region: Sequence[float] | np.ndarray[Any, Any]) -> str:
    """`x1,y1,x2,y2` of four numbers in any sequence."""
    try:
        x1, y1, x2, y2 = (float(number) for number in region)
    except (TypeError, ValueError) as error:
        raise InvalidPrompt(f"a region is four numbers x1, y1, x2, y2, not {region!r}") from error
    return f"{x1!r},{y1!r},{x2!r},{y2!r}"


def _scaled_region(words: str | None, scale: tuple[float, float]) -> str | None:
    """A region in pixels of the caller's picture as one in pixels of the smaller picture that is sent."""
    if words is None or not REGION.fullmatch(words):
        return words
    try:
        numbers = [float(number) for number in words.split(",")]
    except ValueError:
        return words  # the server has the sentence for it
    return ",".join(repr(number * factor) for number, factor in zip(numbers, scale * 2, strict=True))


def _bytes_tensor(value: bytes) -> np.ndarray[Any, Any]:
    return np.array([value], dtype=np.object_)


def _text_tensor(what: str, value: str) -> np.ndarray[Any, Any]:
    try:
        return _bytes_tensor(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidPrompt(f"the {what} holds a character that is not valid Unicode") from error


def _option_tensor(option: str, value: Any) -> np.ndarray[Any, Any]:
    if option == "early_stopping":
        return np.array([bool(value)], dtype=np.bool_)
    try:
        if option == "length_penalty":
            with np.errstate(over="ignore"):  # too large becomes infinite, which the server refuses
                return np.array([float(value)], dtype=np.float32)
        number = operator.index(value)
        if not INT32.min <= number <= INT32.max:
            raise OverflowError(number)
        return np.array([number], dtype=np.int32)
    except (TypeError, ValueError, OverflowError) as error:
        kind = "a number" if option == "length_penalty" else "a whole number of 32 bits"
        raise InvalidOption(f"{option} must be {kind}, not {value!r}") from error
