"""Send the requests of the page, and say what it shows of each answer. Nothing here knows Gradio."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from florence2.answers import TextAnswer
from florence2.contract import OPTIONS
from florence2.errors import Florence2Error, InvalidImage, InvalidOption, InvalidPrompt
from florence2.tasks import TASKS, TaskInput, task_from_name
from florence2_client.client import Client
from florence2_client.objects import plain_text
from florence2_client.request import Options
from florence2_client.result import Result
from florence2_client.tasks import Prompt, parse_task

MOST_REQUESTS = 24
PAUSE = 0.2  # seconds between cards of a growing answer: each is drawn and sent to the browser again


@dataclass(frozen=True)
class Card:
    """An answer as it is shown, or an error. Without either, the request is running."""

    task: str
    error: str | None = None
    overlay: Image.Image | None = None
    words: str = ""  # a text answer, or labels, one a line
    details: dict[str, Any] | None = None
    timing: str = ""
    rated: bool = False  # whether objects have confidences
    final: bool = False
    empty: bool = False  # nothing was found
    note: str | None = None  # what the visitor may not expect
    phrase: str = ""  # of the request, if the task has several


def given_options(values: Sequence[str | bool | None]) -> dict[str, Any]:
    """Return the generation options that were filled in, given the fields in the order of OPTIONS.

    Raise InvalidOption if a field that takes a number holds something else.
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


def input_of(task: str) -> TaskInput | None:
    """Return the input of the task besides the image, or None for a free prompt, which may have a text."""
    known = task_from_name(task)
    return known.input if known else None


def running(tasks: Sequence[str], text: str) -> list[Card]:
    """Return the card of each request, still without an answer. A task that takes a phrase has one for each line.

    Raise InvalidPrompt if there are too many.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    several = lines if len(lines) > 1 else [""]
    cards = [
        Card(task, phrase=line) for task in tasks for line in (several if input_of(task) is TaskInput.TEXT else [""])
    ]
    if len(cards) > MOST_REQUESTS:
        raise InvalidPrompt(f"these are {len(cards)} requests; the page sends at most {MOST_REQUESTS} at once")
    return cards


def ask(
    client: Client,
    image: str | None,
    tasks: Sequence[str],
    text: str,
    region: str,
    options: Options,
    *,
    stream: bool = False,
    min_confidence: float = 0.0,
) -> Iterator[tuple[int, Card]]:
    """Send all requests at once; yield the place of each in `running` with its card, as answers arrive.

    With `stream`, yield cards of growing answers too, except with tiles; their search is greedy.
    """
    arrivals: queue.SimpleQueue[tuple[int, Card] | None] = queue.SimpleQueue()  # None: a task has its last card
    stopped = threading.Event()

    waiting = running(tasks, text)

    def answer(place: int, task: str, phrase: str) -> None:
        try:
            for card in _cards(client, image, task, phrase or text, region, options, stream, min_confidence):
                arrivals.put((place, replace(card, phrase=phrase)))
                if stopped.is_set():
                    return
        except Florence2Error as error:
            arrivals.put((place, Card(task, error=str(error), phrase=phrase)))
        finally:
            arrivals.put(None)

    pool = ThreadPoolExecutor(len(waiting))
    try:
        jobs = [pool.submit(answer, place, card.task, card.phrase) for place, card in enumerate(waiting)]
        left = len(jobs)
        while left:
            item = arrivals.get()
            if item is None:
                left -= 1
            else:
                yield item
        for job in jobs:
            job.result()  # raise what is no error of a request
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)  # a stopped page does not wait


def _cards(
    client: Client, image: str | None, task: str, text: str, region: str, options: Options, stream: bool,
    min_confidence: float,
) -> Iterator[Card]:  # fmt: skip
    """Yield cards; the last one has the complete answer. The task is given the fields of the form that it takes."""
    if not image:
        raise InvalidImage("choose an image first")
    parsed = parse_task(task)
    given = {TaskInput.NONE: None, TaskInput.REGION: region, TaskInput.TEXT: text}[parsed.takes]
    if parsed.text:  # behind the token
        given = None
    elif parsed.known is None:
        task, given = Prompt(task), text.strip() or None
    elif given is not None and not given.strip():
        box = parsed.takes is TaskInput.REGION
        raise InvalidPrompt("draw a box on the image first" if box else "enter a phrase or caption first")
    file = Path(image)  # and nothing else: the page fetches no URLs for visitors
    start, next_card = time.perf_counter(), 0.0
    if stream and not options.get("tiles"):  # a merged answer does not grow
        greedy: Options = {**options, "num_beams": None}
        results: Iterator[Result[Any]] = client.stream(file, task, given, **greedy)
    else:
        results = iter([client.run(file, task, given, **options)])
    for result in results:
        seconds = time.perf_counter() - start
        if result.final or seconds >= next_card:
            yield replace(card_of(task, file, result.at_least(min_confidence), seconds), note=parsed.note)
            drawing = time.perf_counter() - start - seconds
            next_card = seconds + drawing + max(PAUSE, drawing)


def card_of(task: str, image: Path, result: Result[Any], seconds: float) -> Card:
    """Return the card of an answer that took so many seconds."""
    answer, objects = result.answer, result.objects
    timing = f"{seconds:.2f} s · {result.num_tokens} tokens · {result.num_tokens / seconds:.0f} tokens/s"
    if not result.final:
        timing += " · generating …"
    elif result.finish_reason != "stop":
        timing += " · cut off at the token limit"
    if isinstance(answer, TextAnswer):
        words = plain_text(answer.text)
        if result.task in TASKS:
            objects = []  # its only box is the region of the request
    else:
        words = "\n".join(filter(None, result.labels))
    return Card(
        task,
        overlay=result.draw(image),
        words=words,
        details=result.to_dict(),
        timing=f"{len(objects)} found · {timing}" if objects else timing,
        rated=any(found.confidence is not None for found in objects),
        final=result.final,
        empty=result.final and not words and not objects,
    )
