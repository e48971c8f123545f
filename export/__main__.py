"""The command line: one sentence and exit code 1 when an export fails or its parity report does not pass."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from florence2.errors import Florence2Error

PRECISIONS = ("auto", "float32", "bfloat16", "int8", "float16")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Turns a Florence-2 checkpoint into a Triton model repository."
    )
    parser.add_argument("checkpoint", help="a directory, or a Hugging Face hub id")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("build/model_repository"),
        metavar="DIR",
        help="where the repository goes (default: %(default)s); models of other names in it stay",
    )
    parser.add_argument(
        "--name", default="florence2", help="what the five model names begin with (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id (default: its main branch)")
    parser.add_argument(
        "--adapter", metavar="DIR_OR_ID", help="a LoRA adapter of PEFT, trained on either layout, to merge"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of both stages (default: %(default)s, the fastest that keeps the quality)",
    )
    parser.add_argument(
        "--add-version",
        action="store_true",
        help="keep the models of that name as the previous version, for a server that changes over without a pause",
    )
    parser.add_argument("--target", choices=("cpu", "gpu"), default="cpu", help="what it will run on (default: cpu)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        from export.pipeline import export_checkpoint  # torch and transformers load for seconds; --help does not wait

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
    except Florence2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the repository is as it was", file=sys.stderr)
        return 130
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
