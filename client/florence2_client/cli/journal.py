"""The JSON lines of a batch run: the one record of what is done, from which a second run resumes and all else is made.

A line holds `image`, `task`, perhaps `prompt_text`, and either the fields of `Result.to_dict` or an `error`. What a
killed run left of its last line is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from florence2.errors import Florence2Error, InvalidRequest
from florence2_client.result import Result

CHUNK = 1 << 16
BEGINNING = b'{"image": '  # of every line

try:
    import fcntl
except ImportError:  # Windows, where two runs have to keep apart by themselves
    fcntl = None  # type: ignore[assignment]

Key: TypeAlias = tuple[str, str, str | None]  # picture's path, task token or prompt, text


@dataclass(frozen=True)
class Entry:
    """One line: a question by its key, with its answer or the caller's mistake in its place."""

    key: Key
    result: Result[Any] | None
    error: str | None = None

    def to_json(self) -> str:
        image, task, text = self.key
        asked = {"image": image, "task": task} | ({} if text is None else {"prompt_text": text})
        answer = self.result.to_dict() if self.result else {"error": self.error}
        return json.dumps(asked | answer | asked, ensure_ascii=False)


class Journal:
    """Open for one run at a time. `done` are the keys that need not be asked again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[Key] = set()
        self.failed = 0  # of those done, how many are mistakes

    def __enter__(self) -> Journal:
        try:
            self._file = open(self.path, "ab+", buffering=0)
        except OSError as error:
            raise InvalidRequest(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end = self._end_of_lines()
            for entry in entries(self.path):
                self.done.add(entry.key)
                self.failed += entry.error is not None
            self._file.truncate(end)
        except BlockingIOError as error:
            self._file.close()
            raise InvalidRequest(f"another run is writing to {self.path}") from error
        except Florence2Error:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Written when this returns: to the kernel, that is, which outlives us but not a power cut."""
        line = entry.to_json().encode("utf-8", "backslashreplace") + b"\n"
        while line:
            line = line[self._file.write(line) :]
        self.done.add(entry.key)
        self.failed += entry.error is not None

    def _end_of_lines(self) -> int:
        """Where the last whole line ends. Raises InvalidRequest if what follows is no beginning of a line of ours."""
        end = place = self._file.seek(0, os.SEEK_END)
        tail = b""
        while place and b"\n" not in tail:
            place = max(0, place - CHUNK)
            self._file.seek(place)
            tail = self._file.read(end - place)
        half = tail[tail.rfind(b"\n") + 1 :]
        if not half.startswith(BEGINNING[: len(half)]):
            raise InvalidRequest(f"{self.path} ends with half a line that is not of a batch run")
        return end - len(half)


def entries(path: Path) -> Iterator[Entry]:
    """The whole lines of a journal, one at a time. Raises InvalidRequest on one that is not of a batch run."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
                key = (values["image"], values["task"], values.get("prompt_text"))
                if "error" in values:
                    yield Entry(key, None, str(values["error"]))
                else:
                    yield Entry(key, Result.from_dict(values))
            except (ValueError, TypeError, KeyError, AttributeError, Florence2Error) as error:
                raise InvalidRequest(f"line {number} of {path} is not of a batch run") from error
