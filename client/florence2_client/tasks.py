"""What a user means by a task. The library, the command line and the page all read tasks here.

A task is one of three things:

- a name or token of Florence-2's tasks, in any spelling: `od`, `<OD>`, `detailed caption`, `detect`;
- a token of a fine-tune in brackets, `<DocVQA>`, which goes to the model as it is, with the text that follows it;
- a free prompt: a sentence, or anything that is marked as a `Prompt`. An unmarked one is announced by a note.

Everything else is a mistake, such as `captoin`, and is refused with the names that were probably meant.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from florence2.errors import InvalidPrompt
from florence2.locations import LOCATION_TOKEN
from florence2.tasks import OTHER_NAMES, TASKS, Task, TaskInput, letters_of, task_from_name

PIXELS = re.compile(r"\s*[-+.\deE]+\s*(,\s*[-+.\deE]+\s*){3}")  # x1,y1,x2,y2
REGION_TOKENS = re.compile(rf"\s*({LOCATION_TOKEN}){{4}}\s*")
TOKEN = re.compile(r"\s*(<[^<>]+>)(.*)", re.DOTALL)
WORD = re.compile(r"<?[\w-]*>?", re.ASCII)
SIMILAR = 0.6  # of 1, as difflib counts
NEARLY_EQUAL = 0.8
FEW = 5  # words that may still be a misspelled name
LONGEST_SHOWN = 60  # characters

Prompted: TypeAlias = "tuple[str, Any]"  # a task with its phrase, caption or region, or None
ANY_TEXT = frozenset({TaskInput.TEXT, TaskInput.REGION})
NO_TEXT: frozenset[TaskInput] = frozenset()

NAMES = {letters_of(name): name for name in [*(task.name for task in TASKS.values()), *OTHER_NAMES]}


class Prompt(str):
    """A task that goes to the model as it is, for fine-tunes that were trained on prompts of their own.

    >>> prompt = Prompt("What is the date of the invoice?")
    """


class UnmarkedPrompt(UserWarning):
    """A sentence was sent as a prompt. Mark it as a `Prompt` to say that this is meant."""


@dataclass(frozen=True)
class ParsedTask:
    """A task as it is sent, and what is known about it.

    `note` is a sentence for users whose task may not mean what they think: it is sent as a free prompt.

    >>> parse_task("detect")  # doctest: +ELLIPSIS
    ParsedTask(sent='<OD>', ...)
    """

    sent: str  # TASK of the request
    known: Task | None = None  # the row of TASKS, None for a free prompt
    text: str | None = None  # what follows a known token, as in `<OPEN_VOCABULARY_DETECTION>a dog`
    note: str | None = None

    @property
    def takes(self) -> TaskInput:
        """Return what the task takes as its text. A free prompt needs none, but may have one.

        >>> parse_task("open vocabulary detection").takes.name
        'TEXT'
        """
        return self.known.input if self.known else TaskInput.NONE


def parse_task(task: str) -> ParsedTask:
    """Return what a task means. Raise InvalidPrompt if it is empty, or the misspelled name of a task.

    >>> parse_task("Detailed Caption").sent
    '<DETAILED_CAPTION>'
    """
    if not isinstance(task, str):
        raise InvalidPrompt(f"a task is a name such as 'od', not a value of type {type(task).__name__}")
    if isinstance(task, Prompt) and task.strip():
        return ParsedTask(str(task))
    if known := task_from_name(task):
        return ParsedTask(known.token, known)
    shown = repr(task if len(task) <= LONGEST_SHOWN else f"{task[:LONGEST_SHOWN]}…")
    if token := TOKEN.fullmatch(task):
        if known := task_from_name(token[1]):
            return ParsedTask(known.token + token[2], known, token[2].strip())
        meant = [f"<{name.upper()}>" for name in _similar(token[1], NEARLY_EQUAL) if name not in OTHER_NAMES]
        hint = f"{token[1]} is no task token of Florence-2 and is sent as it is; did you mean {' or '.join(meant)}?"
        return ParsedTask(task, note=hint if meant else None)
    if all(map(task_from_name, task.split(","))):
        raise InvalidPrompt(f"{shown} names several tasks; a request has only one")
    is_word = WORD.fullmatch(task.strip())
    meant = _similar(task, SIMILAR if is_word else NEARLY_EQUAL)
    if meant and len(task.split()) <= FEW:
        raise InvalidPrompt(f"there is no task {shown}; did you mean {' or '.join(meant)}?")
    if is_word:
        remedy = "`florence2 tasks` lists them, and a fine-tune's own token is written in brackets"
        raise InvalidPrompt(f"there is no task {shown}; {remedy}")
    return ParsedTask(task, note=f"{shown} is not the name of a task, so it is sent to the model as a free prompt")


def prompts_of(tasks: Iterable[str | Prompted], texts: Sequence[Any]) -> list[Prompted]:
    """Return what to send: each task that takes a text with every text that it can take, the other tasks once.

    A task may have a text of its own, in a tuple or after its token. Where some tasks take phrases and others regions,
    each text goes to tasks of its kind. A fine-tune's token may take any text, and a free prompt does if no other task
    takes one. Raise InvalidPrompt if there is a text that no task takes.
    """
    asked = [task if isinstance(task, (tuple, list)) and len(task) == 2 else (task, None) for task in tasks]
    taken = [NO_TEXT if own is not None else _texts_taken_by(task) for task, own in asked]
    if not any(taken):
        taken = [NO_TEXT if own is not None else _texts_taken_by(task, free=True) for task, own in asked]
    by_kind = NO_TEXT.union(*taken) == ANY_TEXT
    given = [[text for text in texts if kinds and (not by_kind or _kind_of(text) in kinds)] for kinds in taken]
    for text in texts:
        blank = isinstance(text, str) and not text.strip()
        if not blank and not any(text is other for some in given for other in some):
            raise InvalidPrompt(f"none of the tasks takes the text {reprlib.repr(text)}")
    return [(task, text) for (task, own), some in zip(asked, given, strict=True) for text in some or [own]]


def _texts_taken_by(task: str, *, free: bool = False) -> frozenset[TaskInput]:
    """Return the kinds of texts that a task takes; `free` says whether a free prompt takes any."""
    try:
        parsed = parse_task(task)
    except InvalidPrompt:
        return NO_TEXT
    if parsed.known is None:
        token = TOKEN.fullmatch(parsed.sent)
        return ANY_TEXT if free or (token and not token[2].strip()) else NO_TEXT
    return NO_TEXT if parsed.text else frozenset({parsed.takes} & ANY_TEXT)


def _kind_of(text: Any) -> TaskInput:
    words = isinstance(text, str) and not PIXELS.fullmatch(text) and not REGION_TOKENS.fullmatch(text)
    return TaskInput.TEXT if words else TaskInput.REGION


def _similar(name: str, least: float) -> list[str]:
    """Return the names that are most similar, best first, without those that are clearly less so than the best."""
    letters = letters_of(name[:LONGEST_SHOWN]).strip("<>")
    close = difflib.get_close_matches(letters, NAMES, n=3, cutoff=least)
    ratios = [difflib.SequenceMatcher(None, other, letters).ratio() for other in close]
    return [NAMES[other] for other, ratio in zip(close, ratios, strict=True) if ratio > ratios[0] - 0.1]
