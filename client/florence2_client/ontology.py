"""Ontology: what to look for in many images, and the class of what is found.

`label` and the integrations of CVAT and FiftyOne share it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from florence2.errors import ConnectionFailed, Florence2Error, InvalidImage, InvalidPrompt, InvalidRequest
from florence2.tasks import Grammar, TaskInput
from florence2_client.client import Client
from florence2_client.exchange import Question
from florence2_client.images import ImageLike, encode_image
from florence2_client.objects import Found
from florence2_client.request import Options
from florence2_client.results import Results
from florence2_client.tasks import ParsedTask, Prompt, Prompted, parse_task

if TYPE_CHECKING:
    from typing_extensions import Unpack

Classes: TypeAlias = "str | Sequence[str] | Mapping[str, str]"

LOG = logging.getLogger("florence2_client.images")
MOST_FAILURES_IN_A_ROW = 20
WITHOUT_CLASSES = frozenset({"<DENSE_REGION_CAPTION>", "<OCR_WITH_REGION>", "<REGION_PROPOSAL>"})


@dataclass(frozen=True)
class Ontology:
    """A task, and the class that each of its phrases or of the model's labels stands for.

    A task that takes a phrase runs once per phrase, and everything it finds has the phrase's class. Other tasks run
    once: labels are compared without regard to case, and objects with another label get the class `other`, or are left
    out if that is None. Without classes, labels stay as the model gives them. Tasks in `WITHOUT_CLASSES` have labels
    that are text or empty, so all their objects are of one class.
    """

    task: ParsedTask
    phrases: dict[str, str]  # phrase or label -> class
    other: str | None = None

    @classmethod
    def of(cls, task: str | None = None, classes: Classes | None = None, other: str | None = None) -> Ontology:
        """Return the ontology. The default task is open-vocabulary detection if there are classes, and `od` otherwise.

        classes: a list, a mapping of phrases to classes, or one of these as text: `a red car=car, person` or JSON.
        Raise InvalidPrompt if the task is about a region, or needs phrases that are not there.
        """
        phrases = _phrases(classes)
        parsed = parse_task(task or ("<OPEN_VOCABULARY_DETECTION>" if phrases else "<OD>"))
        if parsed.takes is TaskInput.REGION or (parsed.known and parsed.text):
            raise InvalidPrompt(f"{task!r} is about one region or phrase; give a task for whole images, and classes")
        if parsed.takes is TaskInput.TEXT and not phrases:
            raise InvalidPrompt(f"{parsed.sent} looks for phrases, so it needs classes")
        if parsed.takes is TaskInput.TEXT and other is not None:
            raise InvalidPrompt(f"{parsed.sent} finds only its phrases, so nothing is of the class {other!r}")
        without = parsed.sent in WITHOUT_CLASSES or (parsed.known and parsed.known.grammar is Grammar.TEXT)
        if without and len(phrases) > 1:
            raise InvalidPrompt(f"what {parsed.sent} finds has no classes, so there can be only one for all")
        return cls(parsed, phrases, other)

    @property
    def classes(self) -> list[str]:
        """Return each class once, in order; empty if labels stay as they are."""
        return list(dict.fromkeys([*self.phrases.values(), *([self.other] if self.other is not None else [])]))

    @property
    def prompts(self) -> list[Prompted]:
        """Return the requests for an image."""
        task = self.task.sent if self.task.known else Prompt(self.task.sent)
        return [(task, phrase) for phrase in self.phrases] if self.task.takes is TaskInput.TEXT else [(task, None)]

    def objects(self, results: Results[Any]) -> list[tuple[str, Found]]:
        """Return the objects that have a class, each with its class. Raise the first error."""
        found = []
        for (_, phrase), result in zip(self.prompts, results, strict=True):
            objects = result.objects
            if phrase is not None and self.task.known and self.task.known.grammar is Grammar.GROUNDING:
                # "a star on a box" is grounded as "a star" and "a box"; the first is what the phrase is about.
                objects = [one for one in objects if one.label == objects[0].label]
            named = ((self._class_of(phrase, one), one) for one in objects)
            found += [(name, one) for name, one in named if name is not None]
        return found

    def _class_of(self, phrase: str | None, found: Found) -> str | None:
        if not self.phrases:
            return found.label if self.other is None else self.other
        if phrase is not None:
            return self.phrases[phrase]
        if self.task.sent in WITHOUT_CLASSES:
            return next(iter(self.phrases.values()))
        classes = {label.casefold(): name for label, name in self.phrases.items()}
        return classes.get(found.label.casefold(), self.other)


def _phrases(classes: Classes | None) -> dict[str, str]:
    if isinstance(classes, str) and classes.lstrip()[:1] in ("[", "{"):
        try:
            classes = json.loads(classes)
        except ValueError as error:
            raise InvalidPrompt(f"the classes {classes!r} are not valid JSON") from error
    elif isinstance(classes, str):
        parts = [part.partition("=") for part in classes.split(",") if part.strip()]
        classes = {phrase.strip(): (name if equals else phrase).strip() for phrase, equals, name in parts}
    phrases = dict(classes) if isinstance(classes, Mapping) else {name: name for name in classes or ()}
    for text in itertools.chain.from_iterable(phrases.items()):
        if not isinstance(text, str) or not text.strip():
            raise InvalidPrompt(f"a class and its phrase are text, not {text!r}")
    return phrases


def ask_each(
    client: Client, images: Iterable[ImageLike], prompts: Sequence[Prompted], *, concurrency: int = 16,
    **options: Unpack[Options],
) -> Iterator[Results[Any]]:  # fmt: skip
    """Yield the results of each image in order, one per prompt, each with its own error.

    At most `concurrency` requests are in flight, for as many images as that takes.
    """

    def questions() -> Iterator[Question]:
        for image in images:
            if len(prompts) > 1:
                with contextlib.suppress(Florence2Error):  # which each request reports
                    image = encode_image(image, options.get("max_side"))
            for task, text in prompts:
                yield Question(image, task, text)

    with contextlib.closing(client.run_many(questions(), concurrency=concurrency, **options)) as replies:
        for first in replies:
            yield Results(reply.as_result() for reply in [first, *itertools.islice(replies, len(prompts) - 1)])


class Tolerance:
    """Decides which errors cost only their own image: damaged images, and short failures of the server."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def settle(self, name: object, results: Results[Any]) -> bool:
        """Return whether there are results, and log why not. Raise errors that the next image would also have."""
        error = next(iter(results.errors), None)
        if error is None:
            self._in_a_row = 0
            return True
        if not isinstance(error, InvalidImage):
            self._in_a_row += 1
            if isinstance(error, InvalidRequest | ConnectionFailed) or self._in_a_row >= MOST_FAILURES_IN_A_ROW:
                raise error
        LOG.warning("%s is left out: %s", name, error)
        return False
