"""One run of `florence2 batch`: sends the requests that have no answer yet, and writes the answers and drawings."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from florence2.errors import ConnectionFailed, Florence2Error, InvalidImage, InvalidRequest, ModelNotFound
from florence2.tasks import TASKS, TaskInput
from florence2_client.async_client import AsyncClient
from florence2_client.cli.arguments import connection, generation, in_flags, require_prompt
from florence2_client.cli.console import Progress, complain, retries_shown
from florence2_client.description import identity_of
from florence2_client.documents import pages
from florence2_client.exchange import Question, Reply
from florence2_client.journal import Entry, Journal, Key
from florence2_client.resuming import option_differences, require_same_model
from florence2_client.sources import file_name, file_of, naming, output_path, stamp_of, why_absent, write_image
from florence2_client.tasks import Prompt
from florence2_command import INTERRUPTED

MOST_FAILURES_IN_A_ROW = 20
MOST_MISTAKES_SHOWN = 10
MOST_DRAWN_AT_ONCE = 4
WHOLE_IMAGE = "<loc_0><loc_0><loc_999><loc_999>"
PROBE_RETRY_SECONDS = 5.0  # so that a server that was never started is reported soon


class Batch:
    """One run over the requests that the journal does not answer yet."""

    def __init__(self, options: argparse.Namespace, paths: list[str], tasks: list[tuple[str, str | None]]) -> None:
        """Raise InvalidPrompt if a task has no text, or one that it cannot take, whatever the image."""
        self._options = options
        self._paths = paths
        self._path_set = frozenset(paths)
        self._tasks = tasks
        for task, text in tasks:
            require_prompt(task, text, options.tiles)
        self._keys = {(path, *task) for path in paths for task in self._tasks}
        given = {name: value for name, value in generation(options).items() if name != "timeout"}
        self._request: dict[str, Any] = {"model": options.model, "options": given}
        self._kept: set[frozenset[tuple[str, str]]] = set()  # what was served when the answers were made that are kept
        self._changed: set[str] = set()
        self._absent: dict[str, OSError] = {}  # files that cannot be opened, which the next run tries again
        self._unanswered = 0
        self._failures_in_a_row = 0
        self._mistakes = 0
        self._progress = Progress(0, 0)
        self._drawing: set[asyncio.Task[None]] = set()
        self._pages: Iterator[tuple[int, Image.Image]] = iter(())
        self._page: tuple[str, int, Image.Image] | None = None  # the latest one, with its document and number

    def is_stale(self, entry: Entry) -> bool:
        """Return whether a line of the journal is to be replaced by this run.

        Raise InvalidRequest if it is the answer to one of this run's requests, but with other options.
        """
        path, request = entry.key[0], entry.request or {}
        if entry.key not in self._keys and not (entry.is_of_image and path in self._path_set):
            return False
        differences = option_differences(request, self._request)
        if entry.error is not None and (differences or not request or self._options.retry_errors):
            return True
        if request and request["file"] != self._stamp(path) and path not in self._absent:
            self._changed.add(path)
            return True
        if differences:
            raise InvalidRequest(
                f"{self._options.out} has answers to these requests with {', '.join(differences)}; "
                "choose another --out, or delete it"
            )
        if entry.error is None:
            self._kept.add(frozenset((request.get("served") or {}).items()))
        return entry.error is not None and path in self._absent

    def _stamp(self, path: str) -> list[int] | None:
        """Return what tells whether a file has changed; None, and the reason noted, if it cannot be opened."""
        try:
            return stamp_of(path)
        except OSError as error:
            self._absent[path] = error
            return None

    def run(self, journal: Journal) -> int:
        """Return the exit code."""
        self._journal = journal
        self._absent.clear()  # of those whose answers were kept
        if self._changed:
            count = len(self._changed)
            complain(f"note: {count} image{'s' * (count > 1)} changed since the last run and will be sent again")
        left = len(self._open_keys())
        try:
            try:
                if left:
                    done = len(self._keys) - left
                    with Progress(len(self._keys), done) as self._progress, retries_shown(self._progress):
                        asyncio.run(self._send_all())
            finally:
                self._report()
        except KeyboardInterrupt:
            return INTERRUPTED
        except Florence2Error as error:
            complain(in_flags(error))
            return error.exit_code
        return 1 if self._unanswered else 2 if self._failed() or self._absent else 0

    def _open_keys(self) -> set[Key]:
        return {key for key in self._keys if key not in self._journal}

    def _failed(self) -> int:
        """Return the number of requests with an error, and of images that failed in a run with other tasks."""
        failed = self._keys & self._journal.failed
        elsewhere = self._journal.unreadable & self._path_set - {path for path, *_ in failed}
        return len(failed) + len(elsewhere)

    def _questions(self) -> Iterator[Question]:
        for path in self._paths:
            stamp: list[int] | None = None
            for task, text in self._tasks:
                key = (path, task, text)
                if key in self._journal:
                    if path in self._journal.unreadable and key not in self._journal.failed:
                        self._progress.step()
                elif stamp := stamp or self._stamp(path):
                    try:
                        image = self._image(path)
                    except InvalidImage as problem:  # of a page
                        self._settle(Reply(Question(path, task, text, key=(key, stamp)), None, problem))
                    else:
                        yield Question(image, Prompt(task), text, key=(key, stamp))
                else:
                    self._say(why_absent(path, self._absent[path]))
                    break

    def _image(self, path: str) -> Path | Image.Image:
        """Return an image as it is sent: a file, or a page of a document. Pages come in order, several times each."""
        file, number = file_of(path)
        if number is None:
            return Path(file)
        if self._page is None or self._page[:2] != (file, number):
            if self._page is None or self._page[0] != file or self._page[1] > number:
                self._pages = enumerate(pages(Path(file)), 1)
            page = next((image for index, image in self._pages if index == number), None)
            if page is None:
                raise InvalidImage(f"there is no page {number} in {file}")
            self._page = (file, number, page)
        return self._page[2]

    async def _send_all(self) -> None:
        given = generation(self._options)
        retry_for = self._options.retry_for
        async with AsyncClient(**connection(self._options), retry_for=min(PROBE_RETRY_SECONDS, retry_for)) as client:
            await self._probe(client)
            await self._require_same_model(client)
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
            words = WHOLE_IMAGE if input_of(task) is TaskInput.REGION else text
            await client.run(gray.getvalue(), Prompt(task), words, **generation(self._options))

    async def _require_same_model(self, client: AsyncClient) -> None:
        """Raise InvalidRequest if answers that are kept were made with another model of the same name.

        Only what the server tells can be compared. A proxy may hide it, and early versions did not write it down.
        """
        try:
            served = identity_of(await client._description())
        except Florence2Error:
            return
        require_same_model(map(dict, self._kept), served, self._options.out)
        if served:
            self._request["served"] = served

    async def _draw_later(self, reply: Reply) -> None:
        """Draw in a thread, a few at a time; the server works on the next requests meanwhile."""
        while len(self._drawing) >= MOST_DRAWN_AT_ONCE:
            done, _ = await asyncio.wait(self._drawing, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*done)
            self._drawing -= done
        self._drawing.add(asyncio.create_task(self._draw(reply)))

    async def _draw(self, reply: Reply) -> None:
        """Write the drawing before the answer, so that every line in the journal has its drawing."""
        (path, task, text), _ = reply.question.key
        target = output_path(self._options.draw, path, f"{Path(path).suffix}.{self._drawing_names[task, text]}.jpg")

        sure = reply.unwrap().at_least(self._options.min_confidence)

        def draw() -> None:
            with naming(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.part.jpg")
                write_image(sure.draw(reply.question.image), part)
                os.replace(part, target)  # and not the file that a link points to

        try:
            await asyncio.to_thread(draw)
        except InvalidImage as error:  # the file has changed since it was sent
            reply = Reply(reply.question, None, error)
        self._settle(reply)

    @cached_property
    def _drawing_names(self) -> dict[tuple[str, str | None], str]:
        """Return for each task the part of a file name that distinguishes its drawing from the others of the image."""
        names: dict[tuple[str, str | None], str] = {}
        for task, text in self._tasks:
            name = TASKS[task].name if task in TASKS else task
            name = file_name(f"{name}_{text}" if text else name)
            if name.lower() in map(str.lower, names.values()):
                name += "_" + hashlib.sha256(f"{task}{text}".encode()).hexdigest()[:8]
            names[task, text] = name
        return names

    def _settle(self, reply: Reply) -> None:
        """Write down answers and mistakes; leave what the server could not do to the next run."""
        key, stamp = reply.question.key
        request = {**self._request, "file": stamp}
        error = reply.error
        if error is None:
            self._journal.add(Entry(key, reply.unwrap(), request=request))
            self._failures_in_a_row = 0
        elif isinstance(error, InvalidRequest) and not isinstance(error, ModelNotFound):
            # An image that cannot be read may have failed with another task, and one that is gone is looked for again.
            if key not in self._journal and not self._is_gone(key[0]):
                self._journal.add(Entry(key, None, str(error), error.code, request))
                self._say(f"{key[0]}: {in_flags(error)}")
        else:
            self._unanswered += 1
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW or isinstance(error, ConnectionFailed):
                raise error
        self._progress.step()

    def _is_gone(self, path: str) -> bool:
        """Return whether the file of an image cannot be opened any more, and say so once."""
        known = path in self._absent
        if self._stamp(path) is not None:
            return False
        if not known:
            self._say(why_absent(path, self._absent[path]))
        return True

    def _say(self, mistake: str) -> None:
        self._mistakes += 1
        if self._mistakes <= MOST_MISTAKES_SHOWN:
            more = "; further errors are only counted" if self._mistakes == MOST_MISTAKES_SHOWN else ""
            self._progress.say(f"{mistake}{more}")

    def _report(self) -> None:
        """Print what there is for the requests of this run, whatever else the journal holds."""
        open_keys = self._open_keys()
        name = "standard output" if str(self._options.out) == "-" else self._options.out
        absent = {key for key in open_keys if key[0] in self._absent}
        left = len(open_keys) - len(absent)
        parts = [f"{len(self._keys) - len(open_keys)} of {len(self._keys)} done"]
        if failed := self._failed():
            parts += [f"{failed} with an error" + "; --retry-errors tries again" * (not self._mistakes)]
        if absent:
            parts += [f"{len({path for path, *_ in absent})} missing or unreadable"]
        if left:
            parts += [f"{left} left" + "; run the same command again to resume" * (name == self._options.out)]
        print(f"{name}: {', '.join(parts)}", file=sys.stderr)


def input_of(task: str) -> TaskInput:
    """Return what a task takes as its text; a free prompt needs nothing."""
    return TASKS[task].input if task in TASKS else TaskInput.NONE
