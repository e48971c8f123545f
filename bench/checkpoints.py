"""The checkpoints that benchmarks serve: the bundled one, and one of base geometry with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

from bench.decode import BASE, bart_config
from florence2.config import ModelConfig
from tools.toy_model import architecture

BUNDLED = architecture.BUNDLED
IMAGE_TOKEN = BASE.tokens.known  # the ids below it are text and locations


def base_checkpoint(folder: Path) -> Path:
    """Make a checkpoint of base geometry with random weights, unless it exists."""
    return random_checkpoint(folder, base_config())


def random_checkpoint(folder: Path, config: Florence2Config) -> Path:
    """Make a checkpoint with random weights, always the same, unless it exists.

    Speed depends on sizes, not on what was learned. The tokenizer is the bundled one with unused words inserted, so
    that the ids, and the rows of the output head, are those of the published model.
    """
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = Florence2ForConditionalGeneration(config)
        with torch.no_grad():  # rows without a token must not win, and transformers does not forbid them
            model.get_input_embeddings().weight[IMAGE_TOKEN + 1 :] = 0
        architecture.save(model, base_processor(), folder)
    return folder


def base_config() -> Florence2Config:
    return config_of(BASE)


def config_of(model: ModelConfig, **vision: Any) -> Florence2Config:
    """Return the sizes as transformers' configuration; `vision` is what its encoder has other than base's."""
    tokens = {"decoder_start_token_id": model.tokens.decoder_start, "forced_eos_token_id": model.tokens.eos}
    return Florence2Config(
        text_config=bart_config(model.text) | tokens,
        vision_config={"projection_dim": model.text.d_model, **vision},
        image_token_id=IMAGE_TOKEN,
    )


def base_processor() -> Florence2Processor:
    bundled = Florence2Processor.from_pretrained(BUNDLED)
    tokenizer, pixels = bundled.tokenizer, bundled.image_processor
    tokenizer._tokenizer = stretched_tokenizer()
    tokenizer.model_max_length = BASE.text.max_positions
    pixels.size = pixels.crop_size = {"height": BASE.image.height, "width": BASE.image.width}
    pixels.image_seq_length = BASE.image.tokens
    grammar = bundled.post_processor_config
    return Florence2Processor(pixels, tokenizer, num_additional_image_tokens=0, post_processor_config=grammar)


def stretched_tokenizer() -> Tokenizer:
    """Return the bundled tokenizer with its task and location tokens moved up to the published ids."""
    tokenizer = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    moved = [token for token in tokenizer["added_tokens"] if token["id"] >= len(words)]
    shift = IMAGE_TOKEN - moved[-1]["id"]
    for number in range(shift):
        words[f"unused{number}"] = len(words)
    for token in moved:
        token["id"] += shift
    return Tokenizer.from_str(json.dumps(tokenizer))


def exported(checkpoint: Path, exports: Path, precision: str, target: str = "cpu", image_size: int = 0) -> Path:
    """Return where `export` writes a checkpoint's repository."""
    return exports / f"{checkpoint.name}-{precision}-{target}{f'-{image_size}' if image_size else ''}"


def export(checkpoint: Path, exports: Path, precision: str, target: str = "cpu", image_size: int = 0) -> Path:
    """Export a checkpoint, unless that was done before, and return the repository."""
    repository = exported(checkpoint, exports, precision, target, image_size)
    if not repository.exists():
        options: list[str | Path] = ["--repository", repository, "--precision", precision, "--target", target]
        options += ["--image-size", str(image_size)] if image_size else []
        subprocess.run([sys.executable, "-m", "export", checkpoint, *options], check=True, stdout=sys.stderr)
    return repository
