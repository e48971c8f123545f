"""The JSON lines of a batch run: the record from which the next run resumes and all other outputs are made.

A line holds `image`, `task`, for some tasks `prompt_text`, and either the fields of `Result.to_dict` or an `error`. An
incomplete last line, which a killed run may leave, is cut off.
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
except ImportError:  # Windows, where nothing keeps two runs from writing at once
    fcntl = None  # type: ignore[assignment]

Key: TypeAlias = tuple[str, str, str | None]  # the image's path, task token or prompt, text


@dataclass(frozen=True)
class Entry:
    """One line: the key of a request, with its answer or the mistake in it."""

    key: Key
    result: Result[Any] | None
    error: str | None = None

    def to_json(self) -> str:
        """Return the line."""
        image, task, text = self.key
        key = {"image": image, "task": task} | ({} if text is None else {"prompt_text": text})
        answer = self.result.to_dict() if self.result else {"error": self.error}
        return json.dumps(key | answer | key, ensure_ascii=False)


class Journal:
    """The open file of one run at a time. `done` holds the keys that need no request any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[Key] = set()
        self.failed = 0  # how many of them have an error

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
        """Write a line. When this returns, the kernel has it, so it survives this process but not a power failure."""
        line = entry.to_json().encode("utf-8", "backslashreplace") + b"\n"
        while line:
            line = line[self._file.write(line) :]
        self.done.add(entry.key)
        self.failed += entry.error is not None

    def _end_of_lines(self) -> int:
        """Return where the last complete line ends. Raise InvalidRequest if the rest is not the beginning of a line."""
        end = place = self._file.seek(0, os.SEEK_END)
        tail = b""
        while place and b"\n" not in tail:
            place = max(0, place - CHUNK)
            self._file.seek(place)
            tail = self._file.read(end - place)
        half = tail[tail.rfind(b"\n") + 1 :]
        if not half.startswith(BEGINNING[: len(half)]):
            raise InvalidRequest(f"{self.path} ends with an incomplete line that is not from a batch run")
        return end - len(half)


def entries(path: Path) -> Iterator[Entry]:
    """Yield the complete lines of a journal. Raise InvalidRequest on one that is not from a batch run."""
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
                raise InvalidRequest(f"line {number} of {path} is not from a batch run") from error
