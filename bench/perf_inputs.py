"""Writes the file that perf_analyzer sends from: real pictures, each with every task that is asked for.

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


def inputs(pictures: list[bytes], tasks: list[str], text: str | None, options: dict[str, int]) -> dict[str, Any]:
    """`tasks` are tokens; `text` goes with all of them.

    What is base64 here is sent as it is, so the length that BYTES have on the wire is part of it.
    """
    rows = []
    for picture in pictures:
        wire = base64.b64encode(struct.pack("<I", len(picture)) + picture).decode()
        for task in tasks:
            row: dict[str, Any] = {"IMAGE": {"b64": wire}, "TASK": [task]}
            row |= {"TEXT": [text]} if text is not None else {}
            rows.append(row | {name: [value] for name, value in options.items()})
    return {"data": rows}


def _token(name: str) -> str:
    task = task_from_name(name)
    if task is None:
        raise argparse.ArgumentTypeError(f"there is no task {name!r}; florence2 tasks lists them")
    return task.token


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--tasks", type=lambda names: [_token(name) for name in names.split(",")], default="caption")
    parser.add_argument("--text", help="for tasks that take one")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--num-beams", type=int)
    asked = parser.parse_args()
    options = {"MAX_NEW_TOKENS": asked.max_new_tokens, "NUM_BEAMS": asked.num_beams}
    given = {name: value for name, value in options.items() if value is not None}
    json.dump(inputs([path.read_bytes() for path in asked.pictures], asked.tasks, asked.text, given), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
