"""Make the `ModelConfig`, all that serving needs to know, from a checkpoint's JSON files and tokenizer.

`checkpoint` calls it. If the files contradict each other, it decides which one to believe and adds a note.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer
from transformers import Florence2Config

from florence2.config import LOCATION_BINS, ImageConfig, ModelConfig, TextConfig, TokenConfig, read_json
from florence2.errors import CheckpointError
from florence2.tasks import BANNED_PHRASES
from florence2_export import generation

PROCESSOR_HINT = "give the original checkpoint, such as microsoft/Florence-2-base, with --processor"
LONGEST_PROMPT = 14  # tokens of the longest task that takes no text
OWN_TOKENIZER = "use the tokenizer.json that was saved with these weights"


def read_model_config(
    directory: Path,
    name: str,
    architecture: Florence2Config,
    tokenizer: Tokenizer,
    generate: generation.Settings,
    notes: list[str],
    image_size: int | None = None,
) -> ModelConfig:
    """Return the configuration, with the image settings in `directory`, or with images of another `image_size`.

    Raise CheckpointError if a setting is missing or unsupported.
    """
    text = text_config(architecture)
    tokens = token_config(tokenizer, text.vocab_size)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    rowless = sorted(token for token, id in vocabulary.items() if id >= text.vocab_size and token != "<image>")
    if rowless:
        notes.append(
            f"the tokenizer has {len(rowless)} tokens that the embedding has no row for, among them {rowless[0]}; "
            "the server refuses prompts with them"
        )
    try:
        config = ModelConfig(
            image=image_config(read_image_processor(directory), architecture, notes, image_size),
            text=text,
            tokens=tokens,
            generation=generation.read_defaults(generate, tokens, text.max_positions, notes),
            banned_phrases=banned_phrases(directory),
            source=name,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"a setting in the checkpoint's JSON files is missing or invalid ({type(error).__name__}: {error}); "
            "compare them with the files of the original checkpoint"
        ) from error
    if config.max_prompt_tokens < LONGEST_PROMPT:
        raise CheckpointError(
            f"an image of {config.image.height} x {config.image.width} pixels takes {config.image.tokens} of the "
            f"model's {text.max_positions} positions, which leaves no room for a prompt; choose a smaller --image-size"
        )
    return config


def limit_prompts(config: ModelConfig, tokens: int | None) -> ModelConfig:
    """Return the configuration with this limit of prompts, if there is one. Raise CheckpointError if it cannot hold."""
    if tokens is None:
        return config
    most = config.text.max_positions - config.image.tokens
    if not LONGEST_PROMPT <= tokens <= most:
        raise CheckpointError(
            f"--max-prompt-tokens must be from {LONGEST_PROMPT}, which the tasks need, to {most}, the positions that "
            f"an image leaves, not {tokens}"
        )
    return replace(config, prompt_tokens=tokens)


def generation_files(
    directory: Path, config_file: Mapping[str, Any], microsoft: bool, adapter: Path | None
) -> generation.Settings:
    """Return the generation settings of a checkpoint and its adapter, the file that decides first."""
    generate = ("generation_config.json", read_optional(directory, "generation_config.json"))
    inner: tuple[str, Mapping[str, Any]] = ("text_config of config.json", config_file.get("text_config") or {})
    outer = ("config.json", config_file)
    # Microsoft's generate() runs the inner language model, which reads only its own config.
    files = [inner, generate, outer] if microsoft else [generate, outer, inner]
    own = read_optional(adapter, "generation_config.json") if adapter else {}
    return generation.Settings([("generation_config.json of the adapter", own), *files] if own else files)


def read_optional(directory: Path, name: str) -> dict[str, Any]:
    """Return a JSON file's content, empty if there is no such file."""
    return read_json(directory / name) if (directory / name).exists() else {}


def read_image_processor(directory: Path) -> dict[str, Any]:
    """Return the image processor's settings. transformers 5 saves them in processor_config.json, 4 in another file."""
    settings: dict[str, Any] | None = read_optional(directory, "processor_config.json").get("image_processor")
    if not has_image_processor(directory):
        raise CheckpointError(
            f"the image settings in processor_config.json or preprocessor_config.json are missing in {directory}; "
            f"{PROCESSOR_HINT}"
        )
    return settings or read_json(directory / "preprocessor_config.json")


def has_image_processor(directory: Path) -> bool:
    """Return whether there are an image processor's settings."""
    newer = read_optional(directory, "processor_config.json").get("image_processor")
    return bool(newer) or (directory / "preprocessor_config.json").exists()


def image_config(
    processor: Mapping[str, Any], architecture: Florence2Config, notes: list[str], image_size: int | None = None
) -> ImageConfig:
    """Return the image settings, with both sides of `image_size` if it is given.

    Raise CheckpointError if they ask for preprocessing that the server does not do.
    """
    size = processor["size"]
    sides = image_sides(size)
    if sides is None:
        raise CheckpointError(
            f"the image processor's size is {size}, but the server needs one height and one width; set both"
        )
    height, width = sides
    keeps_aspect = isinstance(size, int) or (isinstance(size, dict) and "height" not in size)
    # transformers then keeps the aspect, which makes Florence-2 fail on images that are not square.
    if keeps_aspect and image_size is None:
        notes.append(f"the image processor's size is {size}; images are resized to {height} x {width}, as Florence-2's")
    unusual = [key for key in ("do_resize", "do_rescale", "do_normalize") if not processor.get(key, True)]
    if abs(processor.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        unusual.append("rescale_factor")
    if processor.get("do_center_crop") and (keeps_aspect or image_sides(processor.get("crop_size")) != sides):
        unusual.append("do_center_crop")
    if processor.get("do_pad"):
        unusual.append("do_pad")
    mean, std = channels(processor["image_mean"]), channels(processor["image_std"])
    if not all(math.isfinite(value) for value in mean) or not all(0 < value < math.inf for value in std):
        unusual.append("image_mean or image_std")
    resample = processor.get("resample", 3)
    if resample not in tuple(Image.Resampling):
        unusual.append("resample")
    if unusual:
        raise CheckpointError(
            f"the image processor's settings differ from Florence-2's in {', '.join(unusual)}, which the server does "
            "not support; train and export with Florence-2's preprocessing"
        )
    if image_size is not None:
        notes.append(f"images are resized to {image_size} x {image_size}; the image processor's size is {size}")
        height = width = image_size
    tokens = image_tokens(architecture, height, width)
    if image_size is None and processor.get("image_seq_length", tokens) != tokens:
        said = processor["image_seq_length"]
        notes.append(
            f"image_seq_length is {said}, but the vision encoder makes {tokens} tokens per image; {tokens} is used"
        )
    return ImageConfig(
        height=height,
        width=width,
        mean=mean,
        std=std,
        resample=int(resample),
        tokens=tokens,
    )


def image_sides(size: Any) -> tuple[int, int] | None:
    """Return height and width from any form that transformers reads, None if it does not say both."""
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        size = size["shortest_edge"]
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    return sides[0], sides[1]


def channels(value: Any) -> tuple[float, float, float]:
    """Return a number for each of red, green and blue. One number stands for all three."""
    red, green, blue = value if isinstance(value, list) else [value] * 3
    return float(red), float(green), float(blue)


def image_tokens(architecture: Florence2Config, height: int, width: int) -> int:
    """Return the number of tokens per image: one for the mean and one for each place of the last feature map."""
    most = architecture.vision_config.max_position_embeddings
    rows, columns = places(architecture, height), places(architecture, width)
    if not (1 <= rows <= most and 1 <= columns <= most):
        largest = bisect_right(range(max(height, width)), most, key=lambda side: places(architecture, side)) - 1
        raise CheckpointError(
            f"images of {height} x {width} pixels give a feature map of {rows} x {columns}, but the checkpoint has "
            f"{most} image positions per axis; choose an --image-size of at most {largest}"
        )
    return 1 + rows * columns


def places(architecture: Florence2Config, pixels: int) -> int:
    """Return the places of the last feature map along a side, by the formula of torch.nn.Conv2d."""
    vision = architecture.vision_config
    for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        pixels = (pixels + 2 * padding - size) // stride + 1
    return pixels


def text_config(architecture: Florence2Config) -> TextConfig:
    """Return the language model's geometry. Raise CheckpointError if its activation is unsupported."""
    text = architecture.text_config
    if text.activation_function != "gelu":
        raise CheckpointError(
            f"the language model's activation is {text.activation_function}, but only gelu is supported"
        )
    return TextConfig(
        vocab_size=text.vocab_size,
        d_model=text.d_model,
        encoder_layers=text.encoder_layers,
        decoder_layers=text.decoder_layers,
        encoder_heads=text.encoder_attention_heads,
        decoder_heads=text.decoder_attention_heads,
        encoder_ffn=text.encoder_ffn_dim,
        decoder_ffn=text.decoder_ffn_dim,
        max_positions=text.max_position_embeddings,
        scale_embedding=text.scale_embedding,
    )


def known_tokens(tokenizer: Tokenizer) -> int:
    """Return the number of rows that the tokenizer needs in the embedding.

    `<image>` is the native layout's placeholder in prompts: an unused, untrained row of the embedding.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return 1 + max(id for token, id in vocabulary.items() if token != "<image>")


def token_config(tokenizer: Tokenizer, vocab_size: int) -> TokenConfig:
    """Return the ids of special tokens. Raise CheckpointError if the tokenizer is not Florence-2's."""

    def id_of(token: str) -> int:
        found = tokenizer.token_to_id(token)
        if found is None or found >= vocab_size:
            raise CheckpointError(
                f"the tokenizer is not Florence-2's: {token} is missing or beyond the embedding; {OWN_TOKENIZER}"
            )
        return found

    first = id_of("<loc_0>")
    if id_of(f"<loc_{LOCATION_BINS - 1}>") != first + LOCATION_BINS - 1:
        raise CheckpointError(f"the ids of the tokenizer's location tokens are not consecutive; {OWN_TOKENIZER}")
    eos = id_of("</s>")
    return TokenConfig(
        bos=id_of("<s>"),
        pad=id_of("<pad>"),
        eos=eos,
        decoder_start=eos,  # BART begins a sequence with the token that ends it
        first_location=first,
        known=min(known_tokens(tokenizer), vocab_size),
    )


def banned_phrases(directory: Path) -> tuple[str, ...]:
    """Return the phrases that phrase grounding drops: the checkpoint's list, or Microsoft's if it has none."""
    parsers = read_optional(directory, "processor_config.json").get("post_processor_config") or {}
    listed = parsers.get("phrase_grounding", {}).get("banned_grounding_tokens", BANNED_PHRASES)
    return tuple(dict.fromkeys(listed))
