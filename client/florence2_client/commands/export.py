"""`florence2 export`: hands over to `python -m export`, which lives in the checkout and is not installed."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import florence2
from florence2.errors import Florence2Error

CHECKOUT = Path(florence2.__file__).parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Turn a checkpoint into a servable model: all arguments go to `python -m export`."
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see `florence2 export --help`")


def run(options: argparse.Namespace) -> int:
    if not (CHECKOUT / "export" / "__main__.py").is_file():
        raise Florence2Error(
            "export comes with the project's checkout, and only the client is installed here; run it where you cloned "
            "the project"
        )
    sys.path.insert(0, str(CHECKOUT))
    try:
        module = importlib.import_module("export.__main__")
    except ImportError as error:
        raise Florence2Error(f"export needs more packages ({error}); run `make install` in {CHECKOUT}") from error
    code: int = module.main(options.arguments[options.arguments[:1] == ["--"] :])
    return code
