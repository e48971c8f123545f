"""`florence2 run`: one task on one image."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from florence2.answers import Answer
from florence2.errors import InvalidImage, InvalidRequest
from florence2_client.cli.arguments import (
    FILES,
    add_connection,
    add_generation,
    add_json,
    add_task,
    connection,
    generation,
    require_prompt,
    wants_json,
)
from florence2_client.cli.console import answer_lines, growing_text, json_line, summary_line
from florence2_client.cli.sources import page_names, write_image
from florence2_client.client import Client
from florence2_client.documents import pages
from florence2_client.images import ImageLike
from florence2_client.result import Result

EXAMPLES = """\
examples:
  florence2 run street.jpg --task od
  florence2 run street.jpg --task od --draw found.png
  florence2 run street.jpg --task caption_to_phrase_grounding --text "a red car next to a tree"
  florence2 run street.jpg --task region_to_category --text 34,160,597,371
  florence2 run street.jpg --task caption | jq -r .answer
  florence2 run street.jpg --task more_detailed_caption --stream
  florence2 run contract.pdf --task ocr                          (each page)
  cat street.jpg | florence2 run - --task ocr --url http://gpu-box:8000
  florence2 run form.png --task "<DocVQA>What is the date?"      (a fine-tune's own prompt)

`florence2 tasks` lists the tasks. Exit codes: 0 success, 1 the server failed, 2 the request is wrong,
3 the server is absent, overloaded or too slow.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Run one task on one image."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    file = parser.add_argument("image", metavar="IMAGE", help="image file, or - for standard input")
    file.complete = FILES  # type: ignore[attr-defined]
    add_task(parser)
    parser.add_argument("--stream", action="store_true", help="print the answer as it grows (needs `serve --stream`)")
    add_json(parser)
    draw = parser.add_argument(
        "--draw", type=_image_file, metavar="OUT.png", help="write the image with the answer drawn on it"
    )
    draw.complete = FILES  # type: ignore[attr-defined]
    add_generation(parser)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Print the answer, and draw it."""
    if options.draw and options.draw.exists():
        photo = 0 if options.image == "-" and sys.stdin else options.image  # 0 is what `< photo.jpg` opened
        with contextlib.suppress(OSError):  # without a file to compare, there is none to lose
            if os.path.samestat(os.stat(photo), os.stat(options.draw)):
                raise InvalidRequest(f"--draw {options.draw} would overwrite the image itself; choose another name")
    require_prompt(options.task, options.text)
    names = page_names(options.image)
    with Client(**connection(options), retry_for=0) as client:
        if len(names) == 1 and names[0] == options.image:
            is_url = re.match(r"[A-Za-z]+://|data:", options.image)
            piped = options.image == "-"
            _show(client, options, _standard_input() if piped else options.image if is_url else Path(options.image))
        else:
            for number, image in enumerate(pages(Path(options.image)), 1):
                _show(client, options, image, number)
    return 0


def _show(client: Client, options: argparse.Namespace, image: ImageLike, page: int | None = None) -> None:
    """Print the answer for an image, or for a page of a document, and draw it."""
    start = time.perf_counter()
    more = {"page": page} if page else {}
    request = (image, options.task, options.text)
    if page and not wants_json(options):
        print(f"page {page}:")
    if options.stream:
        result = _follow(client.stream(*request, **generation(options)), wants_json(options), more)
    else:
        result = client.run(*request, **generation(options))
    milliseconds = (time.perf_counter() - start) * 1000
    if not wants_json(options):
        lines = [] if options.stream else answer_lines(result.answer, result.image_size)
        print(*lines, "", summary_line(result, milliseconds), sep="\n")
    elif not options.stream:
        print(json_line(more | result.to_dict()))
    if options.draw:
        target = options.draw.with_stem(f"{options.draw.stem}-{page}") if page else options.draw
        write_image(result.draw(image), target)


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
        raise InvalidRequest(f"{name} does not have the name of an image file; use one that ends in .png or .jpg")
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
