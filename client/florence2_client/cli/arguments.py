"""Command-line arguments that several commands share, and their meaning for the client."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from florence2.contract import OPTIONS
from florence2.errors import Florence2Error, InvalidPrompt, InvalidRequest
from florence2.prompts import build_prompt
from florence2.tasks import task_from_name
from florence2_client.cli.console import complain
from florence2_client.methods import DEFAULT_MODEL
from florence2_client.request import INTEGERS, LONGEST_TIMEOUT, Options
from florence2_client.tasks import TOKEN, WORD, Prompt, parse_task
from florence2_client.tiles import require_tileable
from florence2_client.tiling import parse_tiles
from florence2_client.transports import DEFAULT_URL, Tls

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # shtab's names for completing file names
PYTHON_TYPES = {"INT32": int, "INT64": int, "FP32": float}
FLAGS = {option.name: f"--{option.keyword.replace('_', '-')}" for option in OPTIONS}
FLAG_OF = {"TASK": "--task", "TEXT": "--text", "max_side": "--max-side"}  # of a name that messages have
FLAG_OF |= FLAGS | {option.keyword: FLAGS[option.name] for option in OPTIONS}
MOST_IN_FLIGHT = 4096
ANY_SIZE = (1 << 31, 1 << 31)  # of an image: a region that fits into this one may fit
TEXT_HELP = "a phrase or caption; for region tasks x1,y1,x2,y2 in pixels"
METAVARS = {"INT32": "N", "INT64": "N", "FP32": "X"}


class Once(argparse.Action):
    """Stores the value of an option that names one output or request, and refuses a second one.

    argparse would take the last value. That is left to options that only set how something is done, such as
    `--timeout`, so that a value can be overridden.
    """

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        """Store the value. Raise InvalidRequest if there is one already."""
        if getattr(namespace, self.dest) is not self.default:
            raise InvalidRequest(f"{flag} is given twice; it takes one value")
        setattr(namespace, self.dest, values)


def require_with(options: argparse.Namespace, flags: Iterable[str], *others: str) -> None:
    """Raise InvalidRequest if one of the flags was given without any of the others, as it would be ignored."""
    for flag in flags:
        if flag in options.given and not options.given.intersection(others):
            raise InvalidRequest(f"{flag} has no effect without {' or '.join(others)}")


def require_without(options: argparse.Namespace, flags: Iterable[str], other: str) -> None:
    """Raise InvalidRequest if one of the flags was given together with the other one, as it would be ignored."""
    for flag in flags:
        if flag in options.given and other in options.given:
            raise InvalidRequest(f"{flag} has no effect with {other}; leave one of them out")


def add_connection(parser: argparse.ArgumentParser, place: Any = None, *, optional: bool = False) -> None:
    """Add the options that say which server to connect to, and how. `place` is another group for `--url`.

    optional: the command starts a server of its own without `--url`.
    """
    group = parser.add_argument_group("server")
    (place or group).add_argument(
        "--url",
        default=None if optional else os.environ.get("FLORENCE2_URL") or DEFAULT_URL,
        metavar="U",
        help="grpc://HOST:PORT or http://HOST:PORT "
        + ("(default: a server for this run)" if optional else "(default: FLORENCE2_URL, otherwise %(default)s)"),
    )
    group.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME", help="the ensemble on the server (default: %(default)s)"
    )
    group.add_argument(
        "--header", action="append", type=_header, metavar="NAME:VALUE", help="sent with every request; repeatable"
    )
    group.add_argument("--ca", metavar="FILE", help="certificate authority to trust with grpcs:// and https://")


def add_listening(parser: argparse.ArgumentParser, default_port: int) -> None:
    """Add the options of a command that listens on a port and sends requests to a server for its visitors."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every address (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=port, default=default_port, metavar="PORT", help="0 picks a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="S",
        help="give up on a request after S seconds (default: %(default)g)",
    )  # fmt: skip


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments for Client or AsyncClient."""
    return {
        "url": options.url,
        "model": options.model,
        "headers": dict(options.header or ()),
        "tls": Tls(ca=options.ca) if options.ca else None,
    }


def require_prompt(task: str, text: str | None, tiles: str | None = None) -> None:
    """Raise InvalidPrompt if a task has no text, or one that it cannot take, whatever the image and the server.

    Raise InvalidOption if there are tiles, and the task takes none.
    """
    if tiles:
        require_tileable(task)
    build_prompt(parse_task(task).sent, text, ANY_SIZE)


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add `--task` and `--text`."""
    parser.add_argument(
        "--task", action=Once, required=True, type=task_name, metavar="TASK", help="such as od, caption or ocr"
    )
    parser.add_argument(
        "--text", action=Once, type=str, metavar="T", help=TEXT_HELP
    )  # blank is no text, as on the server


def add_several_tasks(parser: argparse.ArgumentParser) -> None:
    """Add `--task` and `--text` with lists as their values."""
    parser.add_argument(
        "--task", "--tasks", required=True, action="extend", type=task_names, metavar="TASK",
        help="such as od, caption or ocr, or several: caption,od",
    )  # fmt: skip
    parser.add_argument("--text", action="append", type=str, metavar="T", help=f"{TEXT_HELP}; repeatable")


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the options of a request, among them every generation option of the contract."""
    parser.add_argument("--timeout", type=seconds, metavar="S", help="give up on a request after this many seconds")
    parser.add_argument(
        "--max-side", type=number(int, 1), metavar="N", help="scale larger images down to N pixels before sending them"
    )
    parser.add_argument(
        "--tiles", type=_tiles, metavar="auto|N|CxR",
        help="look for small things in overlapping tiles as well: auto, N pixels a side, or C columns and R rows",
    )  # fmt: skip
    group = parser.add_argument_group("generation (defaults are the checkpoint's)")
    for option in OPTIONS:
        flag = FLAGS[option.name]
        description = _with_flags(option.help) + (f" ({option.range})" if option.range else "")
        if option.type == "BOOL":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=description)
        else:
            kind = PYTHON_TYPES[option.type]
            low = -math.inf if option.minimum is None else option.minimum
            high = INTEGERS[option.type].max if option.type in INTEGERS else math.inf
            converter = number(kind, low, high)
            group.add_argument(flag, type=converter, metavar=METAVARS[option.type], help=description)


def add_confidence(parser: argparse.ArgumentParser, where: str) -> None:
    """Add `--min-confidence`; `where` says what it leaves objects out of."""
    parser.add_argument(
        "--min-confidence", type=number(float, 0, 1), default=0.0, metavar="P",
        help=f"leave objects with a lower confidence out of {where} (0 to 1, default: %(default)g)",
    )  # fmt: skip


def generation(options: argparse.Namespace) -> Options:
    """Return the options that were given."""
    names = [*(option.keyword for option in OPTIONS), "tiles", "max_side", "timeout"]
    given = {name: getattr(options, name) for name in names}
    return Options(**{name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json` and `--no-json`."""
    parser.add_argument(
        "--json",
        action=argparse.BooleanOptionalAction,
        help="print JSON lines, or text (default: text on a terminal, JSON in a pipe)",
    )


def wants_json(options: argparse.Namespace) -> bool:
    """Return what `--json` says, and by default whether standard output is not a terminal."""
    return bool(options.json) if options.json is not None else not sys.stdout.isatty()


def task_name(name: str) -> str:
    """Return the task, marked as a prompt if it is a free one, which is announced. Raise InvalidPrompt on a mistake."""
    note = parse_task(name).note
    if note is None:
        return name
    complain(f"note: {note}")
    return Prompt(name)


def task_names(names: str) -> list[str]:
    """Return the tasks in `caption,od`, each as `task_name` does. The commas of a free prompt separate nothing."""
    parts = [part.strip() for part in names.split(",")]
    if names.strip() and not any(parts):
        raise InvalidPrompt(f"{names!r} names no task; `florence2 tasks` lists them")
    known = [bool(task_from_name(part) or TOKEN.fullmatch(part)) for part in parts]
    if all(known) or (any(known) and all(map(WORD.fullmatch, parts))):
        return [task_name(part) for part in parts if part]
    return [task_name(names)]


def number(
    kind: type[int] | type[float], low: float, high: float = math.inf, above: bool = False
) -> Callable[..., Any]:
    """Return a converter for argparse that takes finite numbers from `low` to `high`, or only those above `low`."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError as error:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {noun}, not {text!r}") from error
        finite = isinstance(value, int) or math.isfinite(value)  # an int may be larger than any float
        if not (low <= value <= high and finite) or (above and value == low):
            least = "a number" if low == -math.inf else f"above {low:g}" if above else f"at least {low:g}"
            most = "" if high == math.inf else f" and at most {high:,}"
            raise argparse.ArgumentTypeError(f"must be {least}{most}, not {text}")
        return value

    return convert


seconds = number(float, 0, LONGEST_TIMEOUT, above=True)
port = number(int, 0, 65535)


@contextlib.contextmanager
def needing_extra(what: str, extra: str) -> Iterator[None]:
    """Name the extra to install if an import in this block lacks a package."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("florence2"):
            raise
        remedy = f"run: pip install 'florence2-triton[{extra}]'"
        raise Florence2Error(f"{what} needs more packages ({error}); {remedy}") from error


def in_flags(error: Florence2Error) -> str:
    """Return the error's sentence, with flags in place of the tensors' and keywords' names."""
    return _with_flags(str(error)) if isinstance(error, InvalidRequest) else str(error)


def _with_flags(text: str) -> str:
    return re.sub(rf"(?<![-\w])({'|'.join(FLAG_OF)})\b", lambda name: FLAG_OF[name[0]], text)


def _tiles(text: str) -> str:
    parse_tiles(text)
    return text


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise InvalidRequest(f"a header must have the form NAME:VALUE, not {text!r}")
    return name.strip(), value.strip()
