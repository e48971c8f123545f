"""What the page asks, through the client library, and what it shows of each answer. No Gradio here."""

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
from florence2.errors import Florence2Error, InvalidImage, InvalidPrompt
from florence2.tasks import TaskInput, task_from_name
from florence2_client.cli.arguments import task_name
from florence2_client.client import Client
from florence2_client.exchange import Question
from florence2_client.objects import plain_text
from florence2_client.options import Options
from florence2_client.result import Result

PAUSE = 0.2  # seconds between cards of one unfinished answer: each is drawn and sent to the browser anew


@dataclass(frozen=True)
class Card:
    """An answer as it is shown, or the sentence that took its place."""

    task: str
    error: str | None = None
    overlay: Image.Image | None = None
    words: str | None = None  # of answers in text
    details: dict[str, Any] | None = None
    timing: str = ""


def takes(tasks: Sequence[str], kind: TaskInput) -> bool:
    """Whether any of the tasks takes this beside the picture."""
    return any(known.input is kind for known in map(task_from_name, tasks) if known)


def ask(
    client: Client,
    picture: str | None,
    tasks: Sequence[str],
    text: str,
    region: str,
    options: Options,
    *,
    stream: bool = False,
) -> Iterator[tuple[int, Card]]:
    """Asks all tasks at once, and yields the place of each in `tasks` with its card, as answers come.

    `stream`: cards of unfinished answers as well, by greedy search.
    """
    questions = []
    for place, task in enumerate(tasks):
        try:
            questions.append(_question(picture, task, text, region, place))
        except Florence2Error as error:
            yield place, Card(task, error=str(error))
    news: queue.SimpleQueue[tuple[int, Card] | None] = queue.SimpleQueue()  # None: a question has its last card
    stopped = threading.Event()

    def answer(question: Question) -> None:
        try:
            for card in _cards(client, question, options, stream):
                news.put((question.key, card))
                if stopped.is_set():
                    return
        finally:
            news.put(None)

    pool = ThreadPoolExecutor(len(tasks))
    running = [pool.submit(answer, question) for question in questions]
    try:
        left = len(running)
        while left:
            item = news.get()
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)  # whoever stopped does not wait


def _question(picture: str | None, task: str, text: str, region: str, place: int) -> Question:
    """Each task gets what it takes of what was filled in. The server judges whether it makes sense."""
    if not picture:
        raise InvalidImage("choose a picture first")
    known = task_from_name(task_name(task))
    kind = known.input if known else TaskInput.NONE
    if kind is TaskInput.REGION and not region.strip():
        raise InvalidPrompt("draw a box on the picture first, around what you ask about")
    if kind is TaskInput.TEXT and not text.strip():
        raise InvalidPrompt("write a phrase or caption first")
    given = {TaskInput.NONE: None, TaskInput.TEXT: text, TaskInput.REGION: region}[kind]
    return Question(picture, task, given, key=place)


def _cards(client: Client, question: Question, options: Options, stream: bool) -> Iterator[Card]:
    """The last one is of the whole answer, or says why there is none."""
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
        timing += " · writing …"
    elif result.finish_reason != "stop":
        timing += " · cut off at the limit of tokens"
    answer = result.answer
    return Card(
        question.task,
        overlay=result.draw(question.image),
        words=plain_text(answer.text) if isinstance(answer, TextAnswer) else None,
        details=result.to_dict(),
        timing=timing,
    )
