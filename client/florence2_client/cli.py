"""The `florence2` command: arguments in, text or JSON out, errors as one sentence and an exit code."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from PIL import Image

from florence2.errors import Florence2Error, InvalidImage, InvalidPrompt, InvalidRequest
from florence2.tasks import TASKS, task_from_name
from florence2_client import info
from florence2_client.client import DEFAULT_MODEL, Client
from florence2_client.console import answer_lines, summary_line, task_lines
from florence2_client.transport import DEFAULT_URL

DEFAULT_REPOSITORY = Path("build/model_repository")  # export's default too
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE

RUN_EXAMPLES = """\
examples:
  florence2 run street.jpg --task od
  florence2 run street.jpg --task od --draw found.png
  florence2 run street.jpg --task caption_to_phrase_grounding --text "a red car next to a tree"
  florence2 run street.jpg --task region_to_category --text 34,160,597,371
  florence2 run street.jpg --task more_detailed_caption --num-beams 1 --json
  cat street.jpg | florence2 run - --task ocr --url http://gpu-box:8000
  florence2 run form.png --task "<DocVQA>What is the date?"      (a fine-tune's own prompt)

`florence2 tasks` lists the tasks. Exit codes: 0 answered, 1 the server failed, 2 a mistake in the request,
3 the server is away, busy or too slow.
"""
SERVE_EXAMPLES = """\
example:
  python -m export CHECKPOINT && florence2 serve        then, elsewhere: florence2 run street.jpg --task od
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode must not end a run
    try:
        options = parser().parse_args(_join_negative_text(sys.argv[1:] if arguments is None else list(arguments)))
        code: int = options.command(options)
        print(end="", flush=True)
        return code
    except Florence2Error as error:
        print(f"florence2: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        return BROKEN_PIPE
    except OSError as error:  # a full disk behind `>`
        print(f"florence2: {error}", file=sys.stderr)
        return 1


def _join_negative_text(arguments: list[str]) -> list[str]:
    """Beware: argparse takes a region that begins with a minus sign, `--text -5,0,50,50`, for an option."""
    for place, (name, value) in enumerate(itertools.pairwise(arguments)):
        if name == "--text" and re.match(r"-[\d.]", value):
            return [*arguments[:place], f"{name}={value}", *arguments[place + 2 :]]
    return arguments


class _Parser(argparse.ArgumentParser):
    """Reports mistakes as all others are: one sentence, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise InvalidRequest(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    main_parser = _Parser(prog="florence2", description="Ask Florence-2 about pictures, or serve it.")
    commands = main_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(
        commands.add_parser("run", help="ask one task about one picture", formatter_class=argparse.RawTextHelpFormatter)
    )
    _add_serve(
        commands.add_parser("serve", help="serve an exported model", formatter_class=argparse.RawTextHelpFormatter)
    )
    _add_health(commands.add_parser("health", help="ask whether a server is alive, by a real inference"))
    _add_tasks(commands.add_parser("tasks", help="list the tasks"))
    info.add_command(
        commands.add_parser(
            "info", help="which checkpoints are served, and of when", formatter_class=argparse.RawTextHelpFormatter
        )
    )
    return main_parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.description = "Ask one task about one picture."
    run.epilog = RUN_EXAMPLES
    run.set_defaults(command=run_command)
    run.add_argument("image", metavar="IMAGE", help="picture file, or - for standard input")
    run.add_argument("--task", required=True, type=_task, metavar="TASK", help="such as od, caption or ocr")
    run.add_argument("--text", metavar="T", help="a phrase or caption; for region tasks x1,y1,x2,y2 in pixels")
    run.add_argument(
        "--url", default=DEFAULT_URL, metavar="U", help="grpc://HOST:PORT or http://HOST:PORT (default: %(default)s)"
    )
    run.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME", help="the ensemble on the server (default: %(default)s)"
    )
    run.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds")
    run.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    run.add_argument("--draw", type=_picture_file, metavar="OUT.png", help="write the picture with the answer on it")
    generation = run.add_argument_group("generation (defaults are the checkpoint's)")
    generation.add_argument("--max-new-tokens", type=int, metavar="N", help="cut the answer off there")
    generation.add_argument("--num-beams", type=int, metavar="N", help="hypotheses of beam search; 1 is greedy")
    generation.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="0 allows repetition")
    generation.add_argument("--length-penalty", type=float, metavar="X", help="above 0 favours long answers")
    generation.add_argument(
        "--early-stopping", action=argparse.BooleanOptionalAction, help="end the search at enough hypotheses"
    )


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.description = "Serve an exported model with the embedded Triton Inference Server until Ctrl-C."
    serve.epilog = SERVE_EXAMPLES
    serve.set_defaults(command=serve_command)
    serve.add_argument(
        "--repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="DIR",
        help="made by export (default: %(default)s)",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="where to listen; 0.0.0.0 is everywhere (default: %(default)s)"
    )
    for protocol, port in ("http", 8000), ("grpc", 8001), ("metrics", 8002):
        help_text = "0 picks a free one (default: %(default)s)"
        serve.add_argument(f"--{protocol}-port", type=int, default=port, metavar="PORT", help=help_text)
    serve.add_argument(
        "--cache-mib",
        type=int,
        default=256,
        metavar="MIB",
        help="memory for pictures that are asked about again, so that they are encoded once; 0 is none\n"
        "(default: %(default)s, 145 pictures of Florence-2-base)",
    )
    serve.add_argument(
        "--model-control", action="store_true", help="let callers have models loaded again (see docs/export.md)"
    )


def _add_health(health: argparse.ArgumentParser) -> None:
    health.description = (
        "Ask a server for one token about a tiny picture. Exit code 0 if it is alive, 1 and a sentence if it is not. "
        "Triton's own health routes do not notice a dead model process."
    )
    health.set_defaults(command=health_command)
    health.add_argument("--url", default=DEFAULT_URL, metavar="U", help="as of `florence2 run` (default: %(default)s)")
    health.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="the ensemble (default: %(default)s)")
    health.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default: %(default)s)")


def _add_tasks(tasks: argparse.ArgumentParser) -> None:
    tasks.description = "List the tasks: their names, what they take beside the picture, and what they answer with."
    tasks.set_defaults(command=tasks_command)


def run_command(options: argparse.Namespace) -> int:
    picture = _standard_input() if options.image == "-" else Path(options.image)
    start = time.perf_counter()
    with Client(options.url, options.model) as client:
        result = client.run(
            picture,
            options.task,
            options.text,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.num_beams,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            timeout=options.timeout,
        )
    milliseconds = (time.perf_counter() - start) * 1000
    if options.json:
        print(json.dumps(result.to_dict(), ensure_ascii=not _prints_unicode()))
    else:
        print(*answer_lines(result.answer, result.image_size), "", summary_line(result, milliseconds), sep="\n")
    if options.draw:
        _save(result.draw(picture), options.draw)
    return 0


def serve_command(options: argparse.Namespace) -> int:
    from florence2.server import serve

    return serve(
        options.repository,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        model_control=options.model_control,
    )


def health_command(options: argparse.Namespace) -> int:
    from florence2_client.health import check_health

    health = check_health(options.url, options.model, options.timeout)
    print(health.sentence, file=sys.stdout if health.alive else sys.stderr)
    return 0 if health.alive else 1


def tasks_command(options: argparse.Namespace) -> int:
    print(*task_lines(), sep="\n")
    return 0


def _task(name: str) -> str:
    """A task's name or token. A lone word must be one; anything longer may be a fine-tune's prompt."""
    if task_from_name(name) or not re.fullmatch(r"\s*<?[\w-]*>?\s*", name):
        return name
    names = [task.name for task in TASKS.values()]
    close = difflib.get_close_matches(name.strip(" <>").lower().replace("-", "_"), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`florence2 tasks` lists them"
    raise InvalidPrompt(f"there is no task {name!r}; {hint}")


def _picture_file(name: str) -> Path:
    path = Path(name)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InvalidRequest(f"{name} does not end like a picture file; try a name ending in .png or .jpg")
    if not path.parent.is_dir():
        raise InvalidRequest(f"there is no directory {path.parent} to write {path.name} to")
    return path


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be written: {error}") from error


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidImage("IMAGE is - but no picture is piped in")
    return sys.stdin.buffer.read()


def _prints_unicode() -> bool:
    return str(getattr(sys.stdout, "encoding", "")).lower().replace("-", "").startswith("utf")
