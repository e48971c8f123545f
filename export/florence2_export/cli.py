"""Define the arguments and the exit code of `florence2 export`.

`florence2 --help` imports this module, so it must not import torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from florence2.answers import FORMS
from florence2.errors import Florence2Error, InvalidRequest
from florence2.tasks import TASKS

PRECISIONS = ("auto", "float32", "bfloat16", "int8", "int4", "float16")
EXAMPLES = """\
examples:
  florence2 export florence-community/Florence-2-base-ft
  florence2 export my-checkpoint/ --target gpu --repository models
  florence2 export microsoft/Florence-2-base --adapter my-lora/ --name mine
  florence2 export my-icon-captions/ --image-size 64 --name icons

This command needs the export extra: pip install 'florence2-triton[export]'
Exit codes: 0 exported, 1 failed or the comparison with the checkpoint failed, 130 stopped by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `florence2 export` to its parser."""
    parser.description = (
        "Turn a Florence-2 checkpoint into a Triton model repository, and check it against transformers."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    parser.add_argument("checkpoint", help="a directory, or the id of a repository on the Hugging Face hub")
    parser.add_argument(
        "--repository", type=Path, default=Path("build/model_repository"), metavar="DIR",
        help="the repository to write (default: %(default)s); models with other names in it are kept",
    )  # fmt: skip
    parser.add_argument(
        "--name", default="florence2", help="first part of the five models' names (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub (default: the main branch)")
    parser.add_argument(
        "--subfolder", metavar="DIR", help="the checkpoint's folder in CHECKPOINT, such as checkpoint-500"
    )
    parser.add_argument(
        "--processor", metavar="DIR_OR_ID",
        help="take the tokenizer and the image settings from there, for a checkpoint without them",
    )  # fmt: skip
    parser.add_argument(
        "--adapter", metavar="DIR_OR_ID",
        help="PEFT LoRA adapter, trained on either layout, to merge into the checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=_pixels, metavar="N",
        help="resize images to N x N pixels instead of the checkpoint's 768 x 768; 64 makes icons cheap",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="auto",
        help="precision of both models (default: %(default)s, the fastest that keeps the quality)",
    )  # fmt: skip
    parser.add_argument(
        "--add-version", action="store_true",
        help="keep the present models as the previous version, so that a running server can switch without downtime",
    )  # fmt: skip
    parser.add_argument(
        "--answers", action="append", default=[], type=_answers, metavar="PROMPT=FORM",
        help="the server parses answers to prompts of a fine-tune that begin with PROMPT, such as '<my_task>=boxes';\n"
        f"the forms are {', '.join(FORMS)}",
    )  # fmt: skip
    parser.add_argument(
        "--max-prompt-tokens", type=int, metavar="N",
        help="the longest prompt that the server accepts and keeps memory for (default: 447, or what the image leaves "
        "of the model's positions)",
    )  # fmt: skip
    parser.add_argument(
        "--target", choices=("cpu", "gpu"), default="cpu", help="hardware to export for (default: %(default)s)"
    )
    parser.add_argument(
        "--accelerator", choices=("cuda", "tensorrt"),
        help="what runs the vision encoder on a GPU (default: cuda, which starts on every GPU)",
    )  # fmt: skip


def _pixels(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise InvalidRequest(f"--image-size takes a whole number of pixels, such as 64, not {value!r}")
    return int(value)


def _answers(value: str) -> tuple[str, str]:
    """Return the beginning of a prompt and the form of the answers to it."""
    prompt, _, form = (part.strip() for part in value.rpartition("="))
    if not prompt or form not in FORMS:
        raise InvalidRequest(f"--answers takes PROMPT=FORM, and a FORM is one of {', '.join(FORMS)}, not {value!r}")
    if prompt in TASKS:
        raise InvalidRequest(f"{prompt} is a task of Florence-2, whose answers have their own form")
    return prompt, form


def run(options: argparse.Namespace) -> int:
    """Export the checkpoint. Return 0 if the comparison with the checkpoint passes, otherwise 1."""
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
            processor=options.processor,
            subfolder=options.subfolder,
            image_size=options.image_size,
            precision=options.precision,
            add_version=options.add_version,
            device=options.target,
            accelerator=options.accelerator,
            answers=dict(options.answers),
            max_prompt_tokens=options.max_prompt_tokens,
        )
    except KeyboardInterrupt:
        print("interrupted; the repository is unchanged", file=sys.stderr)
        raise
    return 0 if passed else 1
