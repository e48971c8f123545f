"""`florence2 run`: tasks on one image, with drawings and masks of what they find."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from florence2.answers import Answer
from florence2.errors import InvalidImage, InvalidRequest
from florence2.tasks import TASKS
from florence2_client.cli.arguments import (
    FILES,
    Once,
    add_confidence,
    add_connection,
    add_generation,
    add_json,
    add_several_tasks,
    connection,
    generation,
    in_flags,
    require_prompt,
    wants_json,
)
from florence2_client.cli.console import (
    answer_lines,
    complain,
    growing_text,
    json_line,
    styled,
    summary_line,
    title_of,
)
from florence2_client.client import Client
from florence2_client.documents import pages
from florence2_client.images import ImageLike
from florence2_client.methods import DEFAULT_RETRY_SECONDS
from florence2_client.result import Result
from florence2_client.results import Results
from florence2_client.sources import free_name, page_names, require_own_folder, write_image
from florence2_client.tasks import Prompted, parse_task, prompts_of

EXAMPLES = """\
examples:
  florence2 run street.jpg --task od
  florence2 run street.jpg --task od --draw found.png --min-confidence 0.3
  florence2 run street.jpg --task caption,od,ocr
  florence2 run street.jpg --task open_vocabulary_detection --text "a dog" --text "a red car" --draw found.png
  florence2 run street.jpg --task caption_to_phrase_grounding --text "a red car next to a tree"
  florence2 run street.jpg --task region_to_category --text 34,160,597,371
  florence2 run street.jpg --task referring_expression_segmentation --text "a red car" --masks masks/
  florence2 run street.jpg --task caption | jq -r .answer
  florence2 run street.jpg --task more_detailed_caption --stream
  florence2 run contract.pdf --task ocr                          (each page)
  cat street.jpg | florence2 run - --task ocr --url http://gpu-box:8000
  florence2 run form.png --task "<DocVQA>What is the date?"      (a fine-tune's own prompt)

Each --text goes to all tasks that take one. Several requests are in flight together, and are answered in order. If one
fails, the others are still answered, and the exit code is that of the first that failed.
`florence2 tasks` lists the tasks. Exit codes: 0 success, 1 the server failed, 2 the request is wrong,
3 the server is absent, overloaded or too slow.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Run tasks on one image."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    file = parser.add_argument("image", metavar="IMAGE", help="image file, or - for standard input")
    file.complete = FILES  # type: ignore[attr-defined]
    add_several_tasks(parser)
    parser.add_argument("--stream", action="store_true", help="print the answer as it grows (needs `serve --stream`)")
    add_json(parser)
    draw = parser.add_argument(
        "--draw", action=Once, type=_image_file, metavar="OUT.png",
        help="write the image with the answer drawn on it; with several tasks, one image each: OUT-od.png",
    )  # fmt: skip
    draw.complete = FILES  # type: ignore[attr-defined]
    parser.add_argument(
        "--masks", action=Once, type=Path, metavar="DIR",
        help="write a black-and-white mask of each object: DIR/LABEL.png",
    )  # fmt: skip
    add_confidence(parser, "the answer")
    add_generation(parser)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Print the answers, draw them, and write masks."""
    prompts = prompts_of(options.task, options.text or [])
    for task, text in prompts:
        require_prompt(task, text, options.tiles)
    if options.stream and len(prompts) > 1:
        raise InvalidRequest("--stream prints one answer as it grows; give it one task and one text")
    _require_outputs(options, [task for task, _ in prompts])
    names = page_names(options.image)
    several = len(prompts) > 1 or options.tiles
    with Client(**connection(options), retry_for=DEFAULT_RETRY_SECONDS if several else 0) as client:
        is_url = re.match(r"[A-Za-z]+://|data:", options.image)
        image = options.image if is_url else Path(options.image)
        if names == [options.image]:
            return _show(client, options, prompts, _standard_input() if options.image == "-" else image)
        numbered = enumerate(pages(image), 1)
        codes = [_show(client, options, prompts, image, number) for number, image in numbered]
    return next(filter(None, codes), 0)


def _show(
    client: Client, options: argparse.Namespace, prompts: Sequence[Prompted], image: ImageLike, page: int | None = None
) -> int:
    """Print the answers about an image, or a page of a document, and write its files. Return the exit code."""
    start = time.perf_counter()
    more = {"page": page} if page else {}
    if page and not wants_json(options):
        print(f"page {page}:")
    if options.stream:
        stream = client.stream(image, *prompts[0], **generation(options))
        sure = (result.at_least(options.min_confidence) for result in stream)
        results: Results[Any] = Results([_follow(sure, wants_json(options), more)])
    else:
        results = client.ask(image, prompts, **generation(options)).at_least(options.min_confidence)
    if len(results) == 1 and results[0].error:
        raise results[0].error
    if not wants_json(options):
        _print_text(results, (time.perf_counter() - start) * 1000, streamed=options.stream)
    elif not options.stream:
        for result in results:
            print(json_line(more | (_error_dict(result) if result.error else result.to_dict())))
    _complain_of(results)
    if options.draw:
        for found, target in _drawings(results, options.draw, page):
            write_image(found.draw(image), target)
    if options.masks:
        _write_masks(results.succeeded, options.masks, f"{page}-" if page else "")
    return results.errors[0].exit_code if results.errors else 0


def _print_text(results: Results[Any], milliseconds: float, streamed: bool) -> None:
    several = len(results) > 1
    for result in results.succeeded:
        if several:
            print(styled(f"{title_of(result)}:", "bold", sys.stdout))
        lines = [] if streamed else answer_lines(result.answer, result.image_size)
        print(*lines, "", summary_line(result, None if several else milliseconds), sep="\n", end="\n\n"[: 1 + several])
    if several:
        total = f"{len(results.succeeded)} of {len(results)} requests answered, {milliseconds:.0f} ms"
        print(styled(total, "dim", sys.stdout))


def _error_dict(result: Result[Any]) -> dict[str, Any]:
    """Return the line of a request that failed, as in batches."""
    text = {} if result.prompt_text is None else {"prompt_text": result.prompt_text}
    return {"task": result.task, **text, "error": str(result.error), "code": result.error.code if result.error else ""}


def _complain_of(results: Results[Any]) -> None:
    """Print the error of each request that failed, or one sentence if all failed for the same reason."""
    sentences = {in_flags(error) for error in results.errors}
    if len(sentences) == 1 and not results.succeeded:
        complain(sentences.pop())
        return
    for result in results:
        if result.error:
            complain(f"{title_of(result)}: {in_flags(result.error)}")


def _drawings(
    results: Results[Any], target: Path, page: int | None
) -> Iterator[tuple[Result[Any] | Results[Any], Path]]:
    """Yield what to draw together, which is all that one task found, and where to."""
    for task, path in _drawing_targets(target, [result.task for result in results], page).items():
        found = Results(result for result in results.succeeded if result.task == task)
        if found:
            yield found if len(found) > 1 else found[0], path


def _drawing_targets(target: Path, tasks: Iterable[str], page: int | None = None) -> dict[str, Path]:
    """Return the file of each task's drawing: OUT.png, or if there are several, OUT-od.png and so on."""
    distinct = list(dict.fromkeys(tasks))
    paged = target.with_stem(f"{target.stem}-{page}") if page else target
    if len(distinct) == 1:
        return {distinct[0]: paged}
    taken: set[str] = set()
    names = {task: free_name(TASKS[task].name if task in TASKS else task, taken) for task in distinct}
    return {task: paged.with_stem(f"{paged.stem}-{name}") for task, name in names.items()}


def _write_masks(results: Results[Any], folder: Path, prefix: str) -> None:
    """Write a mask of each object, black and white, named by its label: star.png, star-2.png."""
    taken: set[str] = set()
    if results and not results.objects:
        complain("note: nothing was located, so there is no mask to write")
    elif results:
        for label, mask in zip(results.labels, results.iter_masks(), strict=True):
            write_image(Image.fromarray(mask), folder / f"{prefix}{free_name(label or 'object', taken)}.png")


def _require_outputs(options: argparse.Namespace, tasks: Iterable[str]) -> None:
    """Raise InvalidRequest if an output would overwrite the image. Make the folder of the masks."""
    photo = 0 if options.image == "-" and sys.stdin else options.image  # 0 is what `< photo.jpg` opened
    if options.draw:
        sent = [parse_task(task) for task in tasks]
        targets = _drawing_targets(options.draw, [one.known.token if one.known else one.sent for one in sent])
        for target in targets.values():
            with contextlib.suppress(OSError):  # without a file to compare, there is none to lose
                if os.path.samestat(os.stat(photo), os.stat(target)):
                    raise InvalidRequest(f"--draw {target} would overwrite the image itself; choose another name")
    if options.masks:
        require_own_folder(options.masks, [options.image] if os.path.exists(options.image) else [], "--masks")


def _follow(results: Iterable[Result[Answer]], as_json: bool, more: dict[str, int]) -> Result[Answer]:
    """Print what is new in each result, or each result as a JSON line; return the last one."""
    shown = ""
    for result in results:
        if as_json:
            print(json_line(more | result.to_dict()), flush=True)
            continue
        text = growing_text(result)
        print(text[len(shown) :], end="", flush=True)
        shown = text
    print(end="" if as_json else "\n")
    return result


def _image_file(name: str) -> Path:
    path = Path(name)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InvalidRequest(f"--draw takes the name of an image file that ends in .png or .jpg, not {name!r}")
    if path.is_dir():
        raise InvalidRequest(f"{name} is a directory")
    if not path.parent.is_dir():
        raise InvalidRequest(f"there is no directory {path.parent} to write {path.name} to")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidRequest(f"{name} cannot be written: permission denied")
    return path


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidImage("IMAGE is - but no image is piped in")
    return sys.stdin.buffer.read()
