"""Write the input file of perf_analyzer: your images, each with every task.

    python -m bench.perf_inputs street.jpg page.png --tasks caption,od --max-new-tokens 50 > inputs.json
    perf_analyzer -m florence2_ensemble -i grpc -u 127.0.0.1:8001 --input-data inputs.json --concurrency-range 1:8

docs/load.md has the whole recipe.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import sys
from pathlib import Path
from typing import Any

from florence2.tasks import task_from_name


def inputs(images: list[bytes], tasks: list[str], text: str | None, options: dict[str, int]) -> dict[str, Any]:
    """Return the rows for every image and task; `tasks` are tokens, and `text` goes with all of them.

    perf_analyzer sends base64 content as it is, so it includes the length that precedes BYTES on the wire.
    """
    rows = []
    for image in images:
        wire = base64.b64encode(struct.pack("<I", len(image)) + image).decode()
        for task in tasks:
            row: dict[str, Any] = {"IMAGE": {"b64": wire}, "TASK": [task]}
            row |= {"TEXT": [text]} if text is not None else {}
            rows.append(row | {name: [value] for name, value in options.items()})
    return {"data": rows}


def _token(name: str) -> str:
    task = task_from_name(name)
    if task is None:
        raise argparse.ArgumentTypeError(f"no task {name!r}; florence2 tasks lists them")
    return task.token


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--tasks", type=lambda names: [_token(name) for name in names.split(",")], default="caption")
    parser.add_argument("--text", help="for tasks that take one")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--num-beams", type=int)
    arguments = parser.parse_args()
    options = {"MAX_NEW_TOKENS": arguments.max_new_tokens, "NUM_BEAMS": arguments.num_beams}
    given = {name: value for name, value in options.items() if value is not None}
    json.dump(
        inputs([path.read_bytes() for path in arguments.images], arguments.tasks, arguments.text, given), sys.stdout
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
