"""Build a request: the ensemble's input tensors, one element each."""

from __future__ import annotations

import math
import operator
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np

from florence2.contract import OPTIONS, Option
from florence2.errors import InvalidOption, InvalidPrompt
from florence2_client.images import ImageLike, encode_image
from florence2_client.tasks import PIXELS, UnmarkedPrompt, parse_task
from florence2_client.tiling import Tiling

Tensors: TypeAlias = "dict[str, np.ndarray[Any, Any]]"
Region: TypeAlias = "str | Sequence[float] | np.ndarray[Any, Any]"
Phrases: TypeAlias = "list[str] | tuple[str, ...]"
Regions: TypeAlias = "list[str] | tuple[str, ...] | Sequence[Sequence[float]] | Sequence[np.ndarray[Any, Any]]"

OPTIONS_BY_KEYWORD = {option.keyword: option for option in OPTIONS}
INTEGERS: dict[str, Any] = {"INT32": np.iinfo(np.int32), "INT64": np.iinfo(np.int64)}
LONGEST_TIMEOUT = 24 * 60 * 60  # seconds
KINDS = {"BOOL": "true or false", "FP32": "a number"}  # what a value must be


class Options(TypedDict, total=False):
    """Keyword arguments of every request. An option that is left out, or None, keeps its default."""

    # generated: options
    max_new_tokens: int | None  # generate at most this many tokens; more than the model's positions means all of them
    num_beams: int | None  # beams of the search; 1 is greedy
    no_repeat_ngram_size: int | None  # let no sequence of this many tokens occur twice; 0 turns the rule off
    length_penalty: float | None  # with beams, favor longer answers if above 0 and shorter ones if below
    early_stopping: bool | None  # with beams, stop as soon as there are as many answers as beams
    min_new_tokens: int | None  # generate at least this many tokens
    repetition_penalty: float | None  # make generated tokens less likely to come again if above 1, more likely if below
    suppress_repeated_bos: bool | None  # let no `<s>` follow another: prevents loops if NO_REPEAT_NGRAM_SIZE is 0
    temperature: float | None  # above 0, draw each token at random; below 1, likely tokens even more often
    top_k: int | None  # draw only from this many most likely tokens; 0 is all
    top_p: float | None  # draw only from the most likely tokens that together are this probable
    seed: int | None  # with the same number, equal requests draw the same tokens
    # end of generated: options
    timeout: float | None  # seconds for the whole call, retries included
    # Send overlapping parts of the image as well, and merge the answers: "auto", pixels, (columns, rows), or Tiles.
    tiles: Tiling | None
    max_side: int | None  # scale images with a longer side down to this many pixels before they are sent


@dataclass(frozen=True)
class Request:
    """A request, ready to be sent.

    `image_size` is the (width, height) that coordinates in the answer refer to, if a smaller image is sent.
    `prompt_text` is the text of the request, with a region in pixels of the original image.
    """

    tensors: Tensors
    timeout: float | None
    image_size: tuple[int, int] | None
    prompt_text: str | None


def build_request(
    image: ImageLike,
    task: str,
    text: Region | None = None,
    *,
    timeout: float | None = None,
    max_side: int | None = None,
    tiles: object = None,
    **generation: Any,
) -> Request:
    """Read and encode the image, and turn everything that is given into tensors [1].

    `parse_task` says what a task means; a free prompt that is not marked as one is announced by a warning. Raise
    InvalidImage, InvalidPrompt or InvalidOption on a value that has no tensor. Whether values make sense is for the
    server to decide.
    """
    require_timeout(timeout)
    if tiles is not None:
        raise InvalidOption("an answer that is merged from tiles cannot be streamed")
    parsed = parse_task(task)
    if parsed.note:
        warnings.warn(parsed.note, UnmarkedPrompt, stacklevel=2)
    prompt_text = text if text is None or isinstance(text, str) else _region_text(text)
    sent_task, sent_text = parsed.sent, prompt_text
    encoded = encode_image(image, max_side)
    if encoded.original_size:
        sent_text = _scaled_region(prompt_text, encoded.scale)
        if parsed.known and parsed.text:
            sent_task = f"{parsed.known.token}{_scaled_region(parsed.text, encoded.scale)}"
    tensors = {"IMAGE": _bytes_tensor(encoded.data), "TASK": _text_tensor("task", sent_task)}
    if sent_text is not None:
        tensors["TEXT"] = _text_tensor("text", sent_text)
    for keyword, value in generation.items():
        if keyword not in OPTIONS_BY_KEYWORD:
            raise TypeError(f"there is no option {keyword!r}")
        if value is not None:
            option = OPTIONS_BY_KEYWORD[keyword]
            tensors[option.name] = _option_tensor(option, value)
    return Request(tensors, timeout, encoded.original_size, prompt_text or parsed.text or None)


def require_timeout(timeout: float | None) -> None:
    """Raise InvalidOption if a timeout is not a number of seconds in its range."""
    if timeout is not None and not (isinstance(timeout, (int, float, np.number)) and 0 < timeout <= LONGEST_TIMEOUT):
        limits = f"above 0 and at most {LONGEST_TIMEOUT} seconds"
        raise InvalidOption(f"timeout must be {limits}, not {reprlib.repr(timeout)}")


def require_share(name: str, value: float) -> None:
    """Raise InvalidOption if a threshold is not a number from 0 to 1. NaN would leave out everything."""
    if isinstance(value, bool) or not (isinstance(value, (int, float, np.number)) and 0 <= value <= 1):
        raise InvalidOption(f"{name} must be a number from 0 to 1, not {reprlib.repr(value)}")


def listed(text: Any) -> list[Any] | None:
    """Return the texts if there are several: a list of phrases or regions, or an array [n, 4]. None for a single one.

    Four numbers are a region; a list of strings, of sequences, or of nothing holds several texts.
    """
    if text is None or isinstance(text, (str, bytes, Mapping)) or not isinstance(text, Iterable):
        return None
    items = list(text)
    try:
        for item in items:
            iter(item)
    except TypeError:  # a number, or an array of no dimension, which is an Iterable all the same
        return None
    return items


def _region_text(region: Sequence[float] | np.ndarray[Any, Any]) -> str:
    """Return four numbers in any sequence as `x1,y1,x2,y2`."""
    try:
        if isinstance(region, (bytes, Mapping)):
            raise TypeError("a sequence, but not of numbers")
        x1, y1, x2, y2 = numbers = [float(number) for number in region]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("NaN or infinity")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidPrompt(f"a region is four numbers x1, y1, x2, y2, not {reprlib.repr(region)}") from error
    return f"{x1!r},{y1!r},{x2!r},{y2!r}"


def _scaled_region(text: str | None, scale: tuple[float, float]) -> str | None:
    """Convert a region from pixels of the original image to pixels of the smaller image that is sent."""
    if text is None or not PIXELS.fullmatch(text):
        return text
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        return text  # the server explains what is wrong with it
    return ",".join(repr(number * factor) for number, factor in zip(numbers, scale * 2, strict=True))


def _bytes_tensor(value: bytes) -> np.ndarray[Any, Any]:
    return np.array([value], dtype=np.object_)


def _text_tensor(what: str, value: str) -> np.ndarray[Any, Any]:
    try:
        return _bytes_tensor(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidPrompt(f"the {what} contains a character that is not valid Unicode") from error


def _option_tensor(option: Option, value: Any) -> np.ndarray[Any, Any]:
    try:
        if option.type == "BOOL":
            if not isinstance(value, (bool, np.bool_)) and value not in (0, 1):
                raise ValueError("neither true nor false")
            return np.array([bool(value)], dtype=np.bool_)
        if option.type == "FP32":
            with np.errstate(over="ignore"):  # a number that is too large becomes infinity, which the server rejects
                return np.array([float(value)], dtype=np.float32)
        limits, number = INTEGERS[option.type], operator.index(value)
        if not limits.min <= number <= limits.max:
            raise OverflowError(number)
        return np.array([number], dtype=limits.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        kind = KINDS.get(option.type) or f"a {option.type[3:]}-bit integer"
        raise InvalidOption(f"{option.keyword} must be {kind}, not {reprlib.repr(value)}") from error
