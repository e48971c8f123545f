"""What a request is on the wire: the ensemble's input tensors, one element each. No network here."""

from __future__ import annotations

import operator
from typing import Any, TypeAlias, TypedDict

import numpy as np

from florence2.errors import InvalidOption, InvalidPrompt
from florence2.tasks import task_from_name

Tensors: TypeAlias = "dict[str, np.ndarray[Any, Any]]"

INT32 = np.iinfo(np.int32)


class Options(TypedDict, total=False):
    """Generation options; one that is absent or None is left to the checkpoint."""

    max_new_tokens: int | None
    num_beams: int | None
    no_repeat_ngram_size: int | None
    length_penalty: float | None
    early_stopping: bool | None


def request_tensors(image: bytes, task: str, text: str | None, options: Options) -> Tensors:
    """Name -> tensor [1]: IMAGE, TASK, and of the others only what the caller gave.

    A task name (`od`) becomes its token; a prompt that is no task is passed on as it is. Raises InvalidPrompt and
    InvalidOption on values that have no tensor; whether they make sense is the server's to say.
    """
    known = task_from_name(task)
    tensors = {"IMAGE": _bytes_tensor(image), "TASK": _text_tensor("task", known.token if known else task)}
    if text is not None:
        tensors["TEXT"] = _text_tensor("text", text)
    for option, value in options.items():
        if value is not None:
            tensors[option.upper()] = _option_tensor(option, value)
    return tensors


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
