"""Send the requests of the page, and say what it shows of each answer. Nothing here knows Gradio."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from florence2.answers import TextAnswer
from florence2.contract import OPTIONS
from florence2.errors import Florence2Error, InvalidImage, InvalidOption, InvalidPrompt
from florence2.tasks import TaskInput, task_from_name
from florence2_client.cli.arguments import task_name
from florence2_client.client import Client
from florence2_client.exchange import Question
from florence2_client.objects import plain_text
from florence2_client.request import Options
from florence2_client.result import Result

PAUSE = 0.2  # seconds between cards of a growing answer: each is drawn and sent to the browser again


@dataclass(frozen=True)
class Card:
    """An answer as it is shown, or an error."""

    task: str
    error: str | None = None
    overlay: Image.Image | None = None
    words: str | None = None  # of text answers
    details: dict[str, Any] | None = None
    timing: str = ""


def given_options(values: Sequence[str | bool | None]) -> dict[str, Any]:
    """Return the generation options that were filled in, given the fields in the order of OPTIONS.

    Raises InvalidOption if a field that takes a number holds something else.
    """
    given: dict[str, Any] = {}
    for option, value in zip(OPTIONS, values, strict=True):
        if isinstance(value, str) and value.strip():
            try:
                given[option.keyword] = float(value) if option.type == "FP32" else int(value)
            except ValueError as error:
                kind = "a number" if option.type == "FP32" else "a whole number"
                raise InvalidOption(f"{option.name} must be {kind}, not {value.strip()!r}") from error
        elif isinstance(value, bool):
            given[option.keyword] = value
    return given


def takes(tasks: Sequence[str], kind: TaskInput) -> bool:
    """Return whether any of the tasks takes this kind of input besides the image."""
    return any(known.input is kind for known in map(task_from_name, tasks) if known)


def ask(
    client: Client,
    image: str | None,
    tasks: Sequence[str],
    text: str,
    region: str,
    options: Options,
    *,
    stream: bool = False,
) -> Iterator[tuple[int, Card]]:
    """Run all tasks at once; yield the place of each in `tasks` with its card, as answers arrive.

    With `stream`, yield cards of growing answers too; their search is greedy.
    """
    questions = []
    for place, task in enumerate(tasks):
        try:
            questions.append(_question(image, task, text, region, place))
        except Florence2Error as error:
            yield place, Card(task, error=str(error))
    arrivals: queue.SimpleQueue[tuple[int, Card] | None] = queue.SimpleQueue()  # None: a request has its last card
    stopped = threading.Event()

    def answer(question: Question) -> None:
        try:
            for card in _cards(client, question, options, stream):
                arrivals.put((question.key, card))
                if stopped.is_set():
                    return
        finally:
            arrivals.put(None)

    pool = ThreadPoolExecutor(len(tasks))
    running = [pool.submit(answer, question) for question in questions]
    try:
        left = len(running)
        while left:
            item = arrivals.get()
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)  # a stopped page does not wait


def _question(image: str | None, task: str, text: str, region: str, place: int) -> Question:
    """Give the task the fields of the form that it takes. Whether they make sense is for the server to decide."""
    if not image:
        raise InvalidImage("choose an image first")
    known = task_from_name(task_name(task))
    kind = known.input if known else TaskInput.NONE
    if kind is TaskInput.REGION and not region.strip():
        raise InvalidPrompt("draw a box on the image first")
    if kind is TaskInput.TEXT and not text.strip():
        raise InvalidPrompt("enter a phrase or caption first")
    given = {TaskInput.NONE: None, TaskInput.TEXT: text, TaskInput.REGION: region}[kind]
    return Question(image, task, given, key=place)


def _cards(client: Client, question: Question, options: Options, stream: bool) -> Iterator[Card]:
    """Yield cards; the last one has the complete answer or the error."""
    start, shown = time.perf_counter(), -PAUSE
    try:
        for result in _results(client, question, options, stream):
            seconds = time.perf_counter() - start
            if result.final or seconds - shown >= PAUSE:
                shown = seconds
                yield _card(question, result, seconds)
    except Florence2Error as error:
        yield Card(question.task, error=str(error))


def _results(client: Client, question: Question, options: Options, stream: bool) -> Iterator[Result[Any]]:
    if not stream:
        return iter([client.run(question.image, question.task, question.text, **options)])
    greedy: Options = {**options, "num_beams": None}
    return client.stream(question.image, question.task, question.text, **greedy)


def _card(question: Question, result: Result[Any], seconds: float) -> Card:
    timing = f"{seconds:.2f} s · {result.num_tokens} tokens · {result.num_tokens / seconds:.0f} tokens/s"
    if not result.final:
        timing += " · generating …"
    elif result.finish_reason != "stop":
        timing += " · cut off at the token limit"
    answer = result.answer
    return Card(
        question.task,
        overlay=result.draw(question.image),
        words=plain_text(answer.text) if isinstance(answer, TextAnswer) else None,
        details=result.to_dict(),
        timing=timing,
    )
