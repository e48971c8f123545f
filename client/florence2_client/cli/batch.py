"""`florence2 batch`: tasks on many images, written to a journal from which the next run resumes."""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

from PIL import Image

from florence2.errors import ConnectionFailed, Florence2Error, InvalidPrompt, InvalidRequest, ModelNotFound
from florence2.tasks import TASKS, TaskInput, task_from_name
from florence2_client.async_client import AsyncClient
from florence2_client.cli.arguments import FILES, add_connection, add_generation, connection, generation, task_name
from florence2_client.cli.console import Progress, complain, retries_shown
from florence2_client.cli.journal import Entry, Journal, Key, write_coco, write_csv, write_yolo
from florence2_client.cli.sources import image_paths, output_path
from florence2_client.exchange import Question, Reply

EXAMPLES = """\
examples:
  florence2 batch photos/ --tasks caption,od,ocr --out results.jsonl
  florence2 batch 'photos/**/*.jpg' --tasks od --out od.jsonl --coco od.json --draw drawn/
  florence2 batch scans.txt --tasks ocr --out ocr.jsonl --csv ocr.csv --url http://gpu-box:8000
  florence2 batch photos/ --tasks open_vocabulary_detection --text "a traffic sign" --out signs.jsonl --yolo labels/

Each line of the output is an answer, with `image` and `task`. Run the same command again to resume where the last run
stopped, for whatever reason; answers in the output are not requested again. An image that cannot be read gets a line
with `error`. COCO, YOLO and CSV files are written from all lines at the end of each run.
Exit codes: 0 success, 1 the server failed, 2 some images or the request are wrong, 3 the server is absent or
overloaded, 130 interrupted with Ctrl-C.
"""
MOST_FAILURES_IN_A_ROW = 20
MOST_MISTAKES_SHOWN = 10
MOST_DRAWN_AT_ONCE = 4
WHOLE_IMAGE = "<loc_0><loc_0><loc_999><loc_999>"
INTERRUPTED = 130
PROBE_RETRY_SECONDS = 5.0  # so that a server that was never started is reported soon


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run tasks on many images. Survives bad files, server restarts and Ctrl-C."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    sources = parser.add_argument(
        "sources", nargs="+", metavar="DIR_OR_GLOB_OR_LIST",
        help="a directory, a pattern in quotes, image files, a .txt file with one path\n"
        "per line, or - for such lines on standard input",
    )  # fmt: skip
    sources.complete = FILES  # type: ignore[attr-defined]
    parser.add_argument("--tasks", required=True, type=_tasks, metavar="T,T", help="such as caption,od,ocr")
    parser.add_argument("--text", metavar="T", help="phrase, caption or region for tasks that take one")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="answers, one JSON line each")
    parser.add_argument("--coco", type=Path, metavar="FILE.json", help="all objects as COCO detection")
    parser.add_argument("--yolo", type=Path, metavar="DIR", help="all objects as YOLO label files")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="all text answers")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="images with the answers drawn on them")
    parser.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests in flight (default: %(default)s)"
    )
    parser.add_argument(
        "--retry-for", "--patience", type=float, default=120.0, metavar="S",  # sic: the second name is the older one
        help="keep retrying for S seconds if the server is absent or overloaded (default: %(default)g)",
    )  # fmt: skip
    add_generation(parser)
    parser.set_defaults(timeout=600.0)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    paths = image_paths(options.sources)
    with Journal(options.out) as journal:
        batch = Batch(options, paths, journal)
        code = batch.run()
        for write, target in (
            (write_coco, options.coco), (write_yolo, options.yolo), (write_csv, options.csv),
        ):  # fmt: skip
            if target:
                write(options.out, target)
    return code


class Batch:
    """One run over the requests that the journal does not answer yet."""

    def __init__(self, options: argparse.Namespace, paths: list[str], journal: Journal) -> None:
        self._options = options
        self._paths = paths
        self._journal = journal
        self._tasks = _with_text(options.tasks, options.text)
        self._unanswered = 0
        self._failures_in_a_row = 0
        self._mistakes = 0
        self._progress = Progress(0, 0)
        self._drawing: set[asyncio.Task[None]] = set()

    def run(self) -> int:
        """Return the exit code."""
        total = len(self._paths) * len(self._tasks)
        left = sum(1 for _ in self._questions())
        try:
            if left:
                with Progress(total, total - left) as self._progress, retries_shown(self._progress):
                    asyncio.run(self._send_all())
        except KeyboardInterrupt:
            self._report(total)
            return INTERRUPTED
        except Florence2Error as error:
            self._report(total)
            complain(error)
            return error.exit_code
        self._report(total)
        return 1 if self._unanswered else 2 if self._journal.failed else 0

    def _questions(self) -> Iterator[Question]:
        for path in self._paths:
            for task, text in self._tasks:
                if (path, task, text) not in self._journal.done:
                    yield Question(Path(path), task, text, key=(path, task, text))

    async def _send_all(self) -> None:
        given = generation(self._options)
        retry_for = self._options.retry_for
        async with AsyncClient(**connection(self._options), retry_for=min(PROBE_RETRY_SECONDS, retry_for)) as client:
            await self._probe(client)
            client.retry_for = retry_for
            replies: AsyncGenerator[Reply, None] = client.run_many(
                self._questions(), concurrency=self._options.concurrency, ordered=False, **given
            )
            try:
                async with aclosing(replies):
                    async for reply in replies:
                        if self._options.draw and reply.result:
                            await self._draw_later(reply)
                        else:
                            self._settle(reply)
                await asyncio.gather(*self._drawing)
            finally:
                await asyncio.gather(*self._drawing, return_exceptions=True)

    async def _probe(self, client: AsyncClient) -> None:
        """Run each task once on a gray image, so that a mistake in the request is not blamed on the files."""
        gray = io.BytesIO()
        Image.new("RGB", (64, 64), "gray").save(gray, "PNG")
        for task, text in self._tasks:
            words = WHOLE_IMAGE if _takes(task) is TaskInput.REGION else text
            await client.run(gray.getvalue(), task, words, **generation(self._options))

    async def _draw_later(self, reply: Reply) -> None:
        """Draw in a thread, a few at a time; the server works on the next requests meanwhile."""
        while len(self._drawing) >= MOST_DRAWN_AT_ONCE:
            done, _ = await asyncio.wait(self._drawing, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*done)
            self._drawing -= done
        self._drawing.add(asyncio.create_task(self._draw(reply)))

    async def _draw(self, reply: Reply) -> None:
        """Write the drawing before the answer, so that every line in the journal has its drawing."""
        path, task, text = reply.question.key
        target = output_path(self._options.draw, path, f"{Path(path).suffix}.{_file_name(task, text)}.jpg")

        def draw() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            reply.unwrap().draw(path).save(target, quality=90)

        await asyncio.to_thread(draw)
        self._settle(reply)

    def _settle(self, reply: Reply) -> None:
        """Write down answers and mistakes; leave what the server could not do to the next run."""
        key: Key = reply.question.key
        error = reply.error
        if error is None:
            self._journal.add(Entry(key, reply.unwrap()))
            self._failures_in_a_row = 0
        elif isinstance(error, InvalidRequest) and not isinstance(error, ModelNotFound):
            self._journal.add(Entry(key, None, str(error)))
            self._mistakes += 1
            if self._mistakes <= MOST_MISTAKES_SHOWN:
                more = "; further errors are only counted" if self._mistakes == MOST_MISTAKES_SHOWN else ""
                self._progress.say(f"{key[0]}: {error}{more}")
        else:
            self._unanswered += 1
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW or isinstance(error, ConnectionFailed):
                raise error
        self._progress.step()

    def _report(self, total: int) -> None:
        requested = {(path, *key) for path in self._paths for key in self._tasks}
        left = len(requested - self._journal.done)
        parts = [f"{total - left} of {total} done"]
        parts += [f"{self._journal.failed} with an error"] * bool(self._journal.failed)
        parts += [f"{left} left; run the same command again to resume"] * bool(left)
        print(f"{self._options.out}: {', '.join(parts)}", file=sys.stderr)


def _with_text(tasks: Sequence[tuple[str, str | None]], text: str | None) -> list[tuple[str, str | None]]:
    """Give the common text to tasks that take one and have none of their own.

    Raise InvalidPrompt if it is missing, or if no task takes it.
    """
    takes_text = [task for task, own in tasks if own is None and _takes(task) is not TaskInput.NONE]
    if takes_text and text is None:
        raise InvalidPrompt(f"{takes_text[0]} takes a text: add --text")
    if text is not None and not takes_text:
        raise InvalidPrompt("--text was given, but none of the tasks takes one")
    return [(task, text if task in takes_text and own is None else own) for task, own in tasks]


def _takes(task: str) -> TaskInput:
    return TASKS[task].input if task in TASKS else TaskInput.NONE


def _file_name(task: str, text: str | None) -> str:
    """Return the part of a file name that distinguishes the drawings of an image."""
    name = TASKS[task].name if task in TASKS else task
    return re.sub(r"[^\w-]+", "_", f"{name}_{text}" if text else name).strip("_")[:80]


def _tasks(names: str) -> list[tuple[str, str | None]]:
    """Parse tokens, names and prompts of fine-tunes; return each with the text after its token, as in `<TASK>text`."""
    tasks = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        leading = re.match(r"(<[A-Z_]+>)(.+)", name)
        if leading and leading[1] in TASKS:
            tasks.append((leading[1], leading[2]))
        else:
            known = task_from_name(task_name(name))
            tasks.append((known.token if known else name, None))
    if not tasks:
        raise InvalidPrompt("--tasks names no task; `florence2 tasks` lists them")
    return list(dict.fromkeys(tasks))
