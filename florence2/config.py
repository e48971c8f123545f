"""What the server needs to know about a checkpoint, as frozen dataclasses.

Export reads them from a checkpoint and writes `florence2.json` into every model that needs it; the server reads that
file with `ModelConfig.load`. No I/O happens at import.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.answers import FORMS
from florence2.contract import OPTIONS, GenerationOptions
from florence2.errors import CheckpointError, InvalidOption
from florence2.tasks import TASKS, Grammar

FILE_NAME = "florence2.json"
LOCATION_BINS = 1000
# What an image of 768 pixels leaves of the 1024 tokens that every published tokenizer allows (model_max_length).
PROMPT_TOKENS = 1024 - (24 * 24 + 1)


@dataclass(frozen=True)
class ImageConfig:
    """The image as the vision encoder takes it: uint8 [height, width, 3], normalized inside the ONNX graph."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int  # Pillow's number of the filter: 3 is bicubic
    tokens: int  # feature rows per image, for base 1 + 24 * 24
    max_pixels: int = 100_000_000  # of the encoded image, checked before it is decoded


@dataclass(frozen=True)
class TextConfig:
    """The BART language model's geometry."""

    vocab_size: int  # rows of the embedding, padding included
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_ffn: int
    decoder_ffn: int
    max_positions: int
    scale_embedding: bool


@dataclass(frozen=True)
class TokenConfig:
    """Token ids, taken from the tokenizer: the ids in the configs of fine-tunes are often stale."""

    bos: int
    pad: int
    eos: int
    decoder_start: int
    first_location: int
    known: int  # ids from here on are padding rows of the embedding and must never be generated


@dataclass(frozen=True)
class GenerationDefaults(GenerationOptions):
    """The checkpoint's own value of each generation option, and the tokens that it forces."""

    forced_bos: int | None = None
    forced_eos: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Everything that serving needs to know about an exported model."""

    image: ImageConfig
    text: TextConfig
    tokens: TokenConfig
    generation: GenerationDefaults
    banned_phrases: tuple[str, ...]  # dropped from phrase grounding
    source: str  # what the checkpoint was called when it was exported
    answers: dict[str, str] = dataclasses.field(default_factory=dict)  # own prompts of a fine-tune -> a form of FORMS
    prompt_tokens: int = PROMPT_TOKENS  # that each slot has room for, if the positions suffice

    def grammar(self, key: str) -> Grammar:
        """Return the grammar of the answer to a task token or to a prompt, which begins like one of `answers`."""
        if key in TASKS:
            return TASKS[key].grammar
        prompt = max((prompt for prompt in self.answers if key.startswith(prompt)), key=len, default=None)
        return Grammar.TEXT if prompt is None else FORMS[self.answers[prompt]]

    @property
    def max_prompt_tokens(self) -> int:
        """Return the most tokens of a prompt, `<s>` and `</s>` included, which may be fewer than the image leaves."""
        return min(self.prompt_tokens, self.text.max_positions - self.image.tokens)

    @property
    def encoder_positions(self) -> int:
        """Return the most positions that an image and its prompt take together."""
        return self.image.tokens + self.max_prompt_tokens

    @property
    def max_new_tokens(self) -> int:
        """Return the most tokens of an answer: all positions, since the last token is never fed back."""
        return self.text.max_positions

    def generation_options(self, **given: Any) -> GenerationOptions:
        """Return the options of a request: what is given, and the checkpoint's value for what is left out or None.

        Raises InvalidOption on a value out of range.
        """
        given = {keyword: value for keyword, value in given.items() if value is not None}
        for option in OPTIONS:
            if option.keyword in given:
                option.check(given[option.keyword], self.max_new_tokens)
        defaults = {option.keyword: getattr(self.generation, option.keyword) for option in OPTIONS}
        options = GenerationOptions(**(defaults | given | self._sampling(given)))
        most, least = min(options.max_new_tokens, self.max_new_tokens), options.min_new_tokens
        if least > most and "min_new_tokens" in given:
            raise InvalidOption(f"MIN_NEW_TOKENS must be at most MAX_NEW_TOKENS, {most}, not {least}")
        return dataclasses.replace(options, max_new_tokens=most, min_new_tokens=min(least, most))

    def _sampling(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what follows for temperature and beams: only one beam can be sampled. Raises InvalidOption."""
        temperature, beams = given.get("temperature"), given.get("num_beams", 1)
        if temperature is None and (given.get("top_k", 0) > 0 or given.get("top_p", 1) < 1):
            temperature = self.generation.temperature or 1.0
        if not temperature:
            return {"temperature": 0.0} if beams > 1 else {}
        if beams > 1:
            raise InvalidOption(f"NUM_BEAMS must be 1 or left out with TEMPERATURE, TOP_K or TOP_P, not {beams}")
        return {"temperature": temperature, "num_beams": 1}

    def save(self, path: Path) -> None:
        """Write the JSON that `load` reads."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Read what `save` wrote. Raises CheckpointError on a missing file, and on unknown or missing keys."""
        return cls.from_dict(read_json(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Return the configuration for parsed JSON. Raises CheckpointError on unknown or missing keys."""
        parts = {
            "image": ImageConfig,
            "text": TextConfig,
            "tokens": TokenConfig,
            "generation": GenerationDefaults,
        }
        try:
            read = {key: parts[key](**value) if key in parts else value for key, value in values.items()}
            config = cls(**read)
        except TypeError as error:
            raise CheckpointError(f"{FILE_NAME} does not fit this version: {error}") from error
        mean, std = ((r, g, b) for r, g, b in (config.image.mean, config.image.std))  # JSON knows no tuples
        image = dataclasses.replace(config.image, mean=mean, std=std)
        return dataclasses.replace(config, image=image, banned_phrases=tuple(config.banned_phrases))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises CheckpointError if the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing in {path.parent}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} in {path.parent} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} in {path.parent} is not a JSON object")
    return value
