"""Define `florence2 compile`: compile the decoder's step for CPUs ahead of the first start, as when an image is built.

`florence2 --help` imports this module, so it must not import torch.
"""

from __future__ import annotations

import argparse
import time

from florence2.config import GenerationDefaults, ImageConfig, ModelConfig, TextConfig, TokenConfig
from florence2.errors import Florence2Error, ServerError

PRECISIONS = ("int8", "bfloat16", "float32", "int4")
EXAMPLES = """\
examples:
  florence2 compile                              what --precision auto needs
  florence2 compile --precision int8 bfloat16

The server otherwise compiles at its first start, for 20 s. The result is kept in NUMBA_CACHE_DIR, next to the package,
or in the user's cache folder: the first of them that can be written. A server finds it in all of them. It serves CPUs
of the same model and features; a server on another CPU compiles at its first start.
"""
# The step of every checkpoint of a precision has the same code, if the heads are whole vectors, as published.
TINY = ModelConfig(
    image=ImageConfig(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3, tokens=1),
    text=TextConfig(64, 64, 1, 1, 1, 1, 64, 64, max_positions=64, scale_embedding=False),
    tokens=TokenConfig(bos=0, pad=1, eos=2, decoder_start=2, first_location=20, known=64),
    generation=GenerationDefaults(forced_bos=0, forced_eos=2),
    banned_phrases=(),
    source="a tiny model",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `florence2 compile`."""
    parser.description = "Compile the decoder for this machine's CPU, so that the first start of a server is fast."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["int8"],
        help="of the exported models that will be served (default: int8)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Compile for each precision. Raises ServerError if the result cannot be kept."""
    try:
        from florence2.engine.cpu.kernels.step import decode
    except ModuleNotFoundError as error:
        raise Florence2Error(
            f"compiling needs more packages ({error}); run: pip install 'florence2-triton[models]'"
        ) from error
    for precision in options.precision:
        started = time.monotonic()
        load_step(precision)
        folder = decode._cache.folder  # type: ignore[attr-defined]
        if folder is None:
            raise ServerError(
                "nothing that is compiled can be kept; set NUMBA_CACHE_DIR to a folder that can be written"
            )
        print(f"{precision}: in {folder} after {time.monotonic() - started:.1f} s", flush=True)
    return 0


def load_step(precision: str) -> None:
    """Load the compiled step for this precision, or compile it."""
    import torch

    from florence2.engine.bart import LanguageModel
    from florence2.engine.engine import Engine
    from florence2.engine.weights import build_language_model, create_backend
    from florence2_export.language import PREFIX, language_tensors

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LanguageModel(TINY).state_dict().items()}
    weights = {PREFIX + name: torch.ones(shape) for name, shape in shapes.items()}
    model = build_language_model(language_tensors(weights, precision), TINY, precision)
    Engine(create_backend(model, TINY, rows=1), TINY)  # its first step
