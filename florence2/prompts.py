"""From TASK and TEXT of a request to the prompt that the model reads. The preprocess model calls this.

The prompts are those of transformers' `Florence2Processor`. What the processor accepts but the model cannot use
(an empty phrase, a control token, half a region) is refused here with one sentence.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from florence2.errors import InvalidPrompt
from florence2.locations import LOCATION_TOKEN, location_of, region_tokens
from florence2.tasks import TASKS, Task, TaskInput

CONTROL_TOKENS = ("<s>", "</s>", "<pad>", "<unk>", "<mask>", "<image>")
MAX_CHARACTERS = 20_000  # more than 4096 positions hold; the tokenizer takes up to 30 ms for so many

_LEADING_TOKEN = re.compile(r"\s*(<[A-Z_]+>)")
_REGION_TOKENS = re.compile(r"(<loc_(0|[1-9][0-9]*)>){4}")
_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")  # only one way to match digits
_SURROGATE = re.compile(r"[\ud800-\udfff]")

_TAKES = {
    TaskInput.NONE: "takes no text",
    TaskInput.TEXT: "takes a phrase or a caption as its text",
    TaskInput.REGION: "takes a region as its text, <loc_x1><loc_y1><loc_x2><loc_y2> or x1,y1,x2,y2 in pixels",
}


@dataclass(frozen=True)
class Prompt:
    """A prompt. `key` names the answer in RESULT; `text` is what the model reads, without `<s>` and `</s>`."""

    task: Task | None
    key: str
    text: str


def build_prompt(task: str, text: str | None, size: tuple[int, int]) -> Prompt:
    """Return the prompt of a request. Raise InvalidPrompt if task or text is missing, superfluous or malformed.

    task: a task token, or `<TASK>text` without a separate text, or a free prompt, which is followed by `text`.
    text: None or blank if there is none, as many clients always send TEXT.
    size: width and height of the image.
    """
    text = text or ""
    _require_readable("TASK", task)
    _require_readable("TEXT", text)
    leading = _LEADING_TOKEN.match(task)
    row = TASKS.get(leading[1]) if leading else None
    if leading is None or row is None:
        return _free_prompt(task, text)
    behind, text = task[leading.end() :].strip(), text.strip()
    if behind and text:
        raise InvalidPrompt(f"{row.token} has a text both after the task token and in TEXT; send it only once")
    words, takes = behind or text, f"{row.token} {_TAKES[row.input]}"
    if row.input is TaskInput.NONE:
        if words:
            raise InvalidPrompt(f"{takes}, but one was sent")
        return Prompt(row, row.token, row.prompt)
    if not words:
        raise InvalidPrompt(f"{takes}, but none was sent")
    _refuse_task_tokens(f"the text of {row.token}", words)
    if row.input is TaskInput.REGION:
        words = _region(takes, words, size)
    return Prompt(row, row.token, row.prompt.replace("{input}", words))


def _require_readable(name: str, words: str) -> None:
    if len(words) > MAX_CHARACTERS:
        raise InvalidPrompt(f"{name} has {len(words):,} characters; at most {MAX_CHARACTERS:,} are accepted")
    if _SURROGATE.search(words):
        raise InvalidPrompt(f"{name} is not valid Unicode")
    for token in CONTROL_TOKENS:
        if token in words:
            raise InvalidPrompt(f"{name} contains the control token {token}, which only the server may use")


def _free_prompt(task: str, text: str) -> Prompt:
    """Return the words as they are. Fine-tunes are trained on `<DocVQA>question`: no space follows a token."""
    if not task.strip():
        raise InvalidPrompt("TASK is empty; send a task token such as <OD>, or a free prompt")
    words = task
    if text.strip():
        words += text if task.endswith(">") or task[-1].isspace() or text[0].isspace() else f" {text}"
    _refuse_task_tokens("a free prompt", words)
    return Prompt(None, task, words)


def _refuse_task_tokens(where: str, words: str) -> None:
    for token in TASKS:
        if token in words:
            raise InvalidPrompt(f"{where} contains the task token {token}; a request has only one task")


def _region(takes: str, words: str, size: tuple[int, int]) -> str:
    """Return location tokens and pixels as location tokens, clamped to the image."""
    if _REGION_TOKENS.fullmatch(words):
        return re.sub(LOCATION_TOKEN, lambda token: f"<loc_{location_of(token[0])}>", words)
    numbers = words.split(",")
    if len(numbers) != 4 or not all(_NUMBER.fullmatch(number) for number in numbers):
        raise InvalidPrompt(f"{takes}, but the text is neither")
    x1, y1, x2, y2 = box = [float(number) for number in numbers]
    if not all(map(math.isfinite, box)):
        raise InvalidPrompt(f"{takes}, but a number is too large")
    if x1 > x2 or y1 > y2:
        raise InvalidPrompt(f"{takes}, with the upper left corner first")
    if x1 >= size[0] or y1 >= size[1] or x2 < 0 or y2 < 0:
        raise InvalidPrompt(f"the region lies outside the image, which has {size[0]} x {size[1]} pixels")
    return region_tokens(box, size)
