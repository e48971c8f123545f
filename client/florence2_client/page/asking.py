"""What the page asks, through the client library, and what it shows of each answer. No Gradio here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from PIL import Image

from florence2.errors import Florence2Error, InvalidImage, InvalidPrompt
from florence2.results import TextAnswer
from florence2.tasks import TaskInput, task_from_name
from florence2_client.arguments import task_name
from florence2_client.client import Client
from florence2_client.many import Question
from florence2_client.objects import text_alone
from florence2_client.request import Options


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
    client: Client, picture: str | None, tasks: Sequence[str], text: str, region: str, options: Options
) -> Iterator[tuple[int, Card]]:
    """Asks all tasks at once, and yields the place of each in `tasks` with its card, as answers come."""
    questions = []
    for place, task in enumerate(tasks):
        try:
            questions.append(_question(picture, task, text, region, place))
        except Florence2Error as error:
            yield place, Card(task, error=str(error))
    pool = ThreadPoolExecutor(len(tasks))
    try:
        for answered in as_completed([pool.submit(_card, client, question, options) for question in questions]):
            yield answered.result()
    finally:
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


def _card(client: Client, question: Question, options: Options) -> tuple[int, Card]:
    start = time.perf_counter()
    try:
        result = client.run(question.image, question.task, question.text, **options)
        seconds = time.perf_counter() - start
        overlay = result.draw(question.image)
    except Florence2Error as error:
        return question.key, Card(question.task, error=str(error))
    answer = result.answer
    timing = f"{seconds:.2f} s · {result.num_tokens} tokens · {result.num_tokens / seconds:.0f} tokens/s"
    return question.key, Card(
        question.task,
        overlay=overlay,
        words=text_alone(answer.text) if isinstance(answer, TextAnswer) else None,
        details=result.to_dict(),
        timing=timing if result.finish_reason == "stop" else f"{timing} · cut off at the limit of tokens",
    )
