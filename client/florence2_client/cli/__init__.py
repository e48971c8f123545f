"""The `florence2` command: runs a subcommand, and turns errors into one sentence and an exit code.

Each subcommand is a function that describes it to its parser, and sets `command`: a function that takes the parsed
options and returns the exit code.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import itertools
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from florence2 import __version__
from florence2.errors import Florence2Error, InvalidRequest
from florence2_client.cli.arguments import in_flags
from florence2_client.cli.console import complain
from florence2_command import INTERRUPTED

COMMANDS = {  # name -> module:function, and one line of help
    "run": ("florence2_client.cli.run:add_arguments", "run tasks on one image"),
    "batch": ("florence2_client.cli.batch:add_arguments", "run tasks on many images; run it again to resume"),
    "ui": ("florence2_client.cli.serve:add_ui", "serve a web page for a running server"),
    "health": ("florence2_client.cli.health:add_arguments", "check that a server is alive, with a real inference"),
    "info": ("florence2_client.cli.info:add_info", "show which checkpoints a server holds"),
    "tasks": ("florence2_client.cli.info:add_tasks", "list the tasks"),
    "bench": ("florence2_client.cli.bench:add_arguments", "measure latency and throughput of a running server"),
    "serve": ("florence2_client.cli.serve:add_serve", "serve an exported model"),
    "gateway": ("florence2_client.cli.gateway:add_arguments", "serve OpenAI's API in front of a server"),
    "mcp": ("florence2_client.cli.mcp:add_arguments", "offer the tasks to agents as MCP tools"),
    "calibrate": ("florence2_client.cli.calibrate:add_arguments", "calibrate confidences with labeled images"),
    "export": ("florence2_export.cli:add_arguments", "turn a checkpoint into a servable model"),
    "compile": ("florence2_export.compile:add_arguments", "compile the decoder before the first start"),
}
OWN_OPTIONS = ("-h", "--help", "--version", "--print-completion")
SHELLS = ("bash", "zsh", "tcsh")
EPILOG = """\
examples:
  florence2 export florence-community/Florence-2-base-ft
  florence2 serve
  florence2 run street.jpg --task od --draw found.png
  florence2 batch photos/ --tasks caption,od --out results.jsonl

Answers are printed as text on a terminal and as JSON lines in a pipe. NO_COLOR=1 turns colors off.
FLORENCE2_URL is the server's address for commands without --url.
Exit codes: 0 success, 1 the server failed or a disk is full, 2 the request is wrong or a file cannot be read or
written, 3 the server is absent, overloaded or too slow, 130 interrupted with Ctrl-C.
Completion: florence2 --print-completion bash > ~/.local/share/bash-completion/completions/florence2
"""
ARGPARSE_WORDS = (  # its messages, and what they become
    (r"(?<!\S)(--[\w-]+)/--[\w-]+", r"\1"),  # one of an option's names is enough
    (r"^argument (\S+): must", r"\1 must"),
    (r"^argument (\S+): invalid int value: (.+)", r"\1 must be a whole number, not \2"),
    (r"^argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 must be one of \3, not \2"),
    (r"^argument (\S+): expected (?:one|at least one) argument", r"\1 needs a value"),
    (r"^argument (\S+): ignored explicit argument (.+)", r"\1 takes no value, not even \2"),
)
BROKEN_PIPE = 141  # 128 + SIGPIPE
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # no mistake in the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode must not end a run
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_where: complain(message)  # without its place in the code
            given = sys.argv[1:] if arguments is None else list(arguments)
            if not given:
                parser().print_help()
                return 0
            if given[0] not in COMMANDS and not given[0].startswith("-"):
                meant = difflib.get_close_matches(given[0], COMMANDS, n=1)
                remedy = f"did you mean `florence2 {meant[0]}`?" if meant else "`florence2 --help` lists them"
                raise InvalidRequest(f"there is no command {given[0]!r}; {remedy}")
            if given[0] not in COMMANDS and given[0].partition("=")[0] not in OWN_OPTIONS:
                raise InvalidRequest(f"the command comes first, not {given[0]}; `florence2 --help` lists the commands")
            command_line = parser()
            options = command_line.parse_args(_for_argparse(given))
            options.given = frozenset(command_line.given)
            code: int = options.command(options)
            print(end="", flush=True)
            return code
    except Florence2Error as error:
        complain(in_flags(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        full = error.errno in DISK_ERRORS
        if full and not error.filename:  # behind `>`
            _drop_output()
            error.filename = "standard output"
        reason = "it is a file, not a directory" if isinstance(error, FileExistsError) else error.strerror
        complain(f"{error.filename} cannot be written: {reason}" if error.filename else error.strerror or error)
        return 2 if error.filename and not full else 1


def _drop_output() -> None:
    """Leave nothing to be flushed at exit, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _for_argparse(arguments: list[str]) -> list[str]:
    """Join `--text -5,0,50,50` with `=`: argparse takes a region that begins with a minus sign for an option."""
    for place, (name, value) in enumerate(itertools.pairwise(arguments)):
        if name == "--text" and re.match(r"-[\d.]", value):
            return [*arguments[:place], f"{name}={value}", *_for_argparse(arguments[place + 2 :])]
    return arguments


class _Parser(argparse.ArgumentParser):
    """Reports mistakes like all other errors: one sentence, exit code 2.

    `given` has the names of the options that were on the command line, whatever their values.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given: set[str] = set()

    def error(self, message: str) -> NoReturn:
        for pattern, words in ARGPARSE_WORDS:
            message = re.sub(pattern, words, message)
        raise InvalidRequest(f"{message}; see `{self.prog} --help`")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Note that an option was given. Refuse an empty text, which would pass for a folder, a default or nothing."""
        name = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
        if self._subparsers is None and (action.option_strings or arg_strings):
            self.given.add(name)
            if "" in arg_strings and action.type in (None, Path):  # other converters say what they take
                self.error(f"{name} needs a value, not an empty text")
        return super()._get_values(action, arg_strings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments. Raise InvalidRequest if one is unknown, with the option that was probably meant."""
        known = self._option_string_actions
        for given in args or () if self._subparsers is None else ():  # argparse first names what is then missing
            name = given.partition("=")[0]
            mistaken = name.startswith("--") and not any(option.startswith(name) for option in known)
            if mistaken and (meant := difflib.get_close_matches(name, known, n=1)):
                raise InvalidRequest(f"there is no option {name}; did you mean {meant[0]}?")
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            raise InvalidRequest(f"unrecognized arguments: {' '.join(unknown)}; see `{self.prog} --help`")
        return options, unknown


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _options: object, shell: object, _flag: object = None) -> None:
        try:
            import shtab
        except ImportError as error:
            raise Florence2Error("completion needs the package shtab: pip install shtab") from error
        print(shtab.complete(parser, shell=str(shell)))
        parser.exit(0)


def parser() -> _Parser:
    """Return the parser of the command line."""
    raw = argparse.RawTextHelpFormatter
    main_parser = _Parser(
        prog="florence2",
        description="Run Florence-2 on images, or serve it.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    main_parser.add_argument(
        "--print-completion", choices=SHELLS, action=_PrintCompletion, help="print a script that completes commands"
    )
    main_parser.add_argument("--version", action="version", version=f"florence2 {__version__}")
    commands = main_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (place, help_text) in COMMANDS.items():
        module, _, function = place.partition(":")
        command = commands.add_parser(name, help=help_text, formatter_class=raw)
        command.given = main_parser.given
        getattr(importlib.import_module(module), function)(command)
    return main_parser
