"""`florence2 export`: the command's arguments and its exit code. `florence2 --help` imports it, so it stays light."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from florence2.errors import Florence2Error

PRECISIONS = ("auto", "float32", "bfloat16", "int8", "float16")
EXAMPLES = """\
examples:
  florence2 export florence-community/Florence-2-base-ft
  florence2 export my-checkpoint/ --target gpu --repository models
  florence2 export microsoft/Florence-2-base --adapter my-lora/ --name mine

Needs the `export` extra: pip install 'florence2-triton[export]'
Exit codes: 0 exported, 1 failed or the answers differ from the checkpoint's, 130 stopped by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `florence2 export` to its parser."""
    parser.description = "Turn a Florence-2 checkpoint into a Triton model repository."
    parser.epilog = EXAMPLES
    parser.add_argument("checkpoint", help="a directory, or a Hugging Face hub id")
    parser.add_argument(
        "--repository", type=Path, default=Path("build/model_repository"), metavar="DIR",
        help="where the repository goes (default: %(default)s); models of other names in it stay",
    )  # fmt: skip
    parser.add_argument(
        "--name", default="florence2", help="prefix of the names of the five models (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id (default: its main branch)")
    parser.add_argument(
        "--adapter", metavar="DIR_OR_ID", help="a PEFT LoRA adapter, trained on either layout, to merge"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="auto",
        help="precision of both stages (default: %(default)s, the fastest that keeps the quality)",
    )  # fmt: skip
    parser.add_argument(
        "--add-version", action="store_true",
        help="keep the models of that name as the previous version, for a server that switches without a pause",
    )  # fmt: skip
    parser.add_argument(
        "--target", choices=("cpu", "gpu"), default="cpu", help="the hardware to export for (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Export the checkpoint. Return 0 if the result answers like the checkpoint, otherwise 1."""
    try:
        from florence2_export.pipeline import export_checkpoint  # imports torch and transformers, which takes seconds
    except ModuleNotFoundError as error:
        raise Florence2Error(
            f"the export needs more packages ({error}); run: pip install 'florence2-triton[export]'"
        ) from error
    try:
        passed = export_checkpoint(
            options.checkpoint,
            options.repository,
            options.name,
            revision=options.revision,
            adapter=options.adapter,
            precision=options.precision,
            add_version=options.add_version,
            device=options.target,
        )
    except KeyboardInterrupt:
        print("interrupted; the repository is unchanged", file=sys.stderr)
        raise
    return 0 if passed else 1
