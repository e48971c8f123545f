"""`florence2 batch`: tasks on many images, written to a journal from which the next run resumes."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from florence2.errors import InvalidPrompt, InvalidRequest
from florence2.tasks import TaskInput
from florence2_client.cli.arguments import (
    FILES,
    MOST_IN_FLIGHT,
    Once,
    add_confidence,
    add_connection,
    add_generation,
    number,
    require_with,
    task_name,
)
from florence2_client.cli.console import complain
from florence2_client.cli.sending import Batch, input_of
from florence2_client.journal import Journal, tasks_with_objects, write_coco, write_csv, write_yolo
from florence2_client.sources import (
    ImagePaths,
    require_distinct,
    require_own_folder,
    require_writable,
)
from florence2_client.tasks import Prompted, parse_task, prompts_of

EXAMPLES = """\
examples:
  florence2 batch photos/ --tasks caption,od,ocr --out results.jsonl
  florence2 batch 'photos/**/*.jpg' --tasks od --out od.jsonl --coco od.json --draw drawn/
  florence2 batch scans.txt --tasks ocr --out ocr.jsonl --csv ocr.csv --url http://gpu-box:8000
  florence2 batch photos/ --tasks open_vocabulary_detection --text "a traffic sign" --out signs.jsonl --yolo labels/

Each line of the output is an answer, with `image` and `task`. Run the same command again to resume where the last run
stopped, whatever stopped it. Answers in the output are not requested again, unless the image has changed. An image that
cannot be read gets one line with `error`, which stays until --retry-errors; a missing image is looked for in each run.
COCO, YOLO and CSV files are written from all lines at the end of each run.
Exit codes: 0 success, 1 the server failed or a disk is full, 2 some images or the request are wrong, or a file cannot
be written, 3 the server is absent or overloaded, 130 interrupted with Ctrl-C.
"""
LONGEST_RETRY = 30 * 24 * 60 * 60  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run tasks on many images. No answer is lost to bad files, server restarts or Ctrl-C."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    sources = parser.add_argument(
        "sources", nargs="+", metavar="DIR_OR_GLOB_OR_LIST",
        help="a directory, a pattern in quotes, image files, a .txt file with one path\n"
        "per line, or - for such lines on standard input",
    )  # fmt: skip
    sources.complete = FILES  # type: ignore[attr-defined]
    parser.add_argument("--tasks", required=True, action="extend", type=_tasks, metavar="T,T",
                        help="such as caption,od,ocr")  # fmt: skip
    parser.add_argument(
        "--text", action="append", type=str, metavar="T",
        help="phrase, caption or region for tasks that take one; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE.jsonl", help="answers, one JSON line each; - prints them"
    )
    parser.add_argument("--coco", action=Once, type=Path, metavar="FILE.json", help="objects as COCO detection")
    parser.add_argument("--rle", action="store_true", help="with --coco: a mask of every object, run-length encoded")
    parser.add_argument("--yolo", action=Once, type=Path, metavar="DIR", help="objects as YOLO label files")
    parser.add_argument(
        "--all-objects", action="store_true",
        help="put the objects of all tasks into --coco and --yolo, although several may find the same ones\n"
        "(default: those of the first task that finds any)",
    )  # fmt: skip
    parser.add_argument("--csv", action=Once, type=Path, metavar="FILE.csv", help="all text answers")
    parser.add_argument("--draw", action=Once, type=Path, metavar="DIR", help="images with the answers drawn on them")
    add_confidence(parser, "--coco, --yolo\nand --draw; --out has all")
    parser.add_argument("--retry-errors", action="store_true", help="repeat requests that failed in an earlier run")
    parser.add_argument(
        "--concurrency",
        type=number(int, 1, MOST_IN_FLIGHT),
        default=8,
        metavar="N",
        help="requests in flight (default: %(default)s)",
    )
    parser.add_argument(
        "--retry-for", "--patience",  # sic: the second name is the older one
        type=number(float, 0, LONGEST_RETRY), default=120.0, metavar="S",
        help="keep retrying for S seconds if the server is absent or overloaded (default: %(default)g)",
    )  # fmt: skip
    add_generation(parser)
    parser.set_defaults(timeout=600.0)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Send the requests that have no answer yet, and make the other files from all answers."""
    require_with(options, ["--rle"], "--coco")
    require_with(options, ["--all-objects"], "--coco", "--yolo")
    require_with(options, ["--min-confidence"], "--coco", "--yolo", "--draw")
    if str(options.out) != "-":
        return _run(options, options.out)
    if options.retry_errors:
        raise InvalidRequest("--retry-errors has no effect with --out -, which keeps nothing from an earlier run")
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        return _run(options, Path(file.name), sys.stdout)


def _run(options: argparse.Namespace, out: Path, echo: TextIO | None = None) -> int:
    sources = ImagePaths(options.sources)
    batch = Batch(options, sources.paths, _with_texts(options.tasks, options.text or []))
    classes = options.yolo / "classes.txt" if options.yolo else None
    outputs = [path for path in (out, options.coco, options.csv, classes) if path]
    for path in outputs:
        require_writable(path, [*sources.files, *sources.lists])
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise InvalidRequest("--out, --coco and --csv must be different files")
    if options.yolo:
        require_distinct(sources.paths, options.yolo, "label file", ".txt")
    if options.draw:
        require_own_folder(options.draw, sources.paths)
        require_distinct(sources.paths, options.draw, "drawing")
    sources.skipped = [path for path in sources.skipped if Path(path) not in outputs]
    if skipped := sources.skipped_line():
        complain(f"note: skipped {skipped}")
    with Journal(out, batch.is_stale, echo) as journal:
        code = batch.run(journal)
        if options.coco or options.yolo:
            found = tasks_with_objects(out, [task for task, _ in options.tasks], options.min_confidence)
            kept = found if options.all_objects else found[:1]
            if not kept:
                complain("note: nothing was located, so COCO and YOLO files have no objects")
            if options.coco:
                write_coco(out, options.coco, kept, options.min_confidence, rle=options.rle)
            if options.yolo:
                write_yolo(out, options.yolo, kept, options.min_confidence)
            if left := found[len(kept) :]:
                only = f"COCO and YOLO files have the objects of {kept[0]} only, not those of {', '.join(left)}"
                complain(f"note: {only}, which may be the same ones; --all-objects adds them")
        if options.csv and (left_out := write_csv(out, options.csv)):
            complain(f"note: {options.csv} has the text answers only, without {left_out}")
    return code


def _with_texts(tasks: Sequence[Prompted], texts: Sequence[str]) -> list[Prompted]:
    """Return each task with each text that it takes. Raise InvalidPrompt if one is missing, or not taken by any."""
    prompts = prompts_of(tasks, texts)
    for task, text in prompts:
        if text is None and input_of(task) is not TaskInput.NONE:
            raise InvalidPrompt(f"{task} takes a text: add --text")
    return list(dict.fromkeys(prompts))


def _tasks(names: str) -> list[tuple[str, str | None]]:
    """Parse tokens, names and prompts of fine-tunes; return each with the text after its token, as in `<TASK>text`."""
    tasks: list[tuple[str, str | None]] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        parsed = parse_task(task_name(name))
        tasks.append((parsed.known.token, parsed.text or None) if parsed.known else (parsed.sent, None))
    if not tasks:
        raise InvalidPrompt("--tasks names no task; `florence2 tasks` lists them")
    return list(dict.fromkeys(tasks))
