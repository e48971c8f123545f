"""Command-line arguments that several commands share, and what they mean to the client."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import Any

from florence2.errors import InvalidPrompt, InvalidRequest
from florence2.tasks import TASKS, task_from_name
from florence2_client.methods import DEFAULT_MODEL
from florence2_client.request import Options
from florence2_client.transports.base import DEFAULT_URL, Tls

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # what shtab calls the completion of file names
GENERATION = ("max_new_tokens", "num_beams", "no_repeat_ngram_size", "length_penalty", "early_stopping", "max_side")


def add_connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url", default=DEFAULT_URL, metavar="U", help="grpc://HOST:PORT or http://HOST:PORT (default: %(default)s)"
    )
    group.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME", help="the ensemble on the server (default: %(default)s)"
    )
    group.add_argument(
        "--header", action="append", type=_header, metavar="NAME:VALUE", help="sent with every request; repeatable"
    )
    group.add_argument("--ca", metavar="FILE", help="authority to trust with grpcs:// and https://")


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for Client or AsyncClient."""
    return {
        "url": options.url,
        "model": options.model,
        "headers": dict(options.header or ()),
        "tls": Tls(ca=options.ca) if options.ca else None,
    }


def add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, metavar="S", help="give a request up after so many seconds")
    parser.add_argument("--max-side", type=int, metavar="N", help="scale larger pictures down to N pixels to send them")
    group = parser.add_argument_group("generation (defaults are the checkpoint's)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="cut the answer off there")
    group.add_argument("--num-beams", type=int, metavar="N", help="hypotheses of beam search; 1 is greedy")
    group.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="0 allows repetition")
    group.add_argument("--length-penalty", type=float, metavar="X", help="above 0 favours long answers")
    group.add_argument(
        "--early-stopping", action=argparse.BooleanOptionalAction, help="end the search at enough hypotheses"
    )


def generation(options: argparse.Namespace) -> Options:
    """What was given; the rest is left to the checkpoint."""
    given = {name: getattr(options, name) for name in (*GENERATION, "timeout")}
    return Options(**{name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action=argparse.BooleanOptionalAction,
        help="JSON lines, or text for people (default: text on a terminal, JSON in a pipe)",
    )


def wants_json(options: argparse.Namespace) -> bool:
    """As `--json` says, or else as standard output is no terminal."""
    return bool(options.json) if options.json is not None else not sys.stdout.isatty()


def task_name(name: str) -> str:
    """A task's name or token. A lone word must be one; anything longer may be a fine-tune's prompt."""
    if task_from_name(name) or not re.fullmatch(r"\s*<?[\w-]*>?\s*", name):
        return name
    names = [task.name for task in TASKS.values()]
    close = difflib.get_close_matches(name.strip(" <>").lower().replace("-", "_"), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`florence2 tasks` lists them"
    raise InvalidPrompt(f"there is no task {name!r}; {hint}")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise InvalidRequest(f"a header is NAME:VALUE, not {text!r}")
    return name.strip(), value.strip()
