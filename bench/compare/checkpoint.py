"""A checkpoint of Florence-2-base's geometry with random weights, in transformers' layout, and its exports.

Speed depends on sizes, not on what was learned. The tokenizer is the bundled one with unused words in between, so that
ids, and the rows of the output head, are as many as the published model's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

from bench.decode import BASE, bart_config
from tools.toy_model import architecture
from tools.toy_model.evaluate import CHECKPOINT as BUNDLED

IMAGE_TOKEN = BASE.tokens.known  # the ids below it are text and locations


def base_checkpoint(folder: Path) -> Path:
    """Makes it where it is not there yet; the same weights every time."""
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = Florence2ForConditionalGeneration(base_config())
        with torch.no_grad():  # rows without a token must not win; transformers does not forbid them
            model.get_input_embeddings().weight[IMAGE_TOKEN + 1 :] = 0
        architecture.save(model, base_processor(), folder)
    return folder


def base_config() -> Florence2Config:
    text = BASE.text
    return Florence2Config(
        text_config=bart_config(text)
        | {"decoder_start_token_id": BASE.tokens.decoder_start, "forced_eos_token_id": BASE.tokens.eos},
        vision_config=dict(projection_dim=text.d_model),  # all else is base's by default
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
    """The bundled tokenizer with its task and location tokens moved up to the published ids."""
    told = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    words = told["model"]["vocab"]
    moved = [token for token in told["added_tokens"] if token["id"] >= len(words)]
    shift = IMAGE_TOKEN - moved[-1]["id"]
    for number in range(shift):
        words[f"unused{number}"] = len(words)
    for token in moved:
        token["id"] += shift
    return Tokenizer.from_str(json.dumps(told))


def export(checkpoint: Path, exports: Path, precision: str) -> Path:
    """The exported repository; one that is there already is taken."""
    repository = exports / f"{checkpoint.name}-{precision}"
    if not repository.exists():
        command = [sys.executable, "-m", "export", checkpoint, "--repository", repository, "--precision", precision]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return repository
