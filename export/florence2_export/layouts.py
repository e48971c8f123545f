"""Translate a checkpoint in Microsoft's layout (`microsoft/Florence-2-*`) into transformers' native layout.

The two layouts have different names for the same weights and settings. `checkpoint` calls this module; everything
after it knows only the native layout.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from florence2.config import LOCATION_BINS
from florence2.errors import CheckpointError

EMBEDDING = "model.language_model.shared.weight"
DECODER_EMBEDDING = "model.language_model.decoder.embed_tokens.weight"
HEAD = "lm_head.weight"
UNTIED = (DECODER_EMBEDDING, HEAD)  # may be trained apart from the embedding
# Copies of the embedding. Checkpoints store at least one of them.
TIED = (EMBEDDING, "model.language_model.encoder.embed_tokens.weight", DECODER_EMBEDDING, HEAD)

# All rules are applied, in this order.
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^image_projection$", "model.multi_modal_projector.image_projection.weight"),
        (r"^image_pos_embed\.", "model.multi_modal_projector.image_position_embed."),
        (r"^(image_proj_norm|visual_temporal_embed)\.", r"model.multi_modal_projector.\1."),
        (r"^vision_tower\.", "model.vision_tower."),
        (r"(\.convs\.\d+)\.proj\.", r"\1.conv."),
        (r"(\.conv[12])\.fn\.dw\.", r"\1."),
        (r"\.(window|channel)_attn\.norm\.", ".norm1."),
        (r"\.(window|channel)_attn\.fn\.", r".\1_attn."),
        (r"\.ffn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.net\.", ".ffn."),
    )
)
TRANSPOSED = "image_projection"
DROPPED = "language_model.final_logits_bias"  # zeros in every checkpoint; the native head has no bias

# Microsoft's processor adds these to the tokenizer each time it starts; its tokenizer.json lacks them.
ADDED_TOKENS = (
    "<od>", "</od>", "<ocr>", "</ocr>",
    *(f"<loc_{bin}>" for bin in range(LOCATION_BINS)),
    "<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>",
    "<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>",
    "<proposal>", "</proposal>", "<poly>", "</poly>", "<and>",
)  # fmt: skip


def is_microsoft(names: set[str]) -> bool:
    """Return whether these are weight names of Microsoft's layout."""
    return any(name.startswith("language_model.model.") for name in names)


def native_name(name: str) -> str:
    """Return the native name of a weight. A native name stays unchanged."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def native_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under native names, not copied. Raise CheckpointError if the head's bias is not zero."""
    if DROPPED in weights and weights[DROPPED].any():
        raise CheckpointError(
            f"{DROPPED} is not zero, but Florence-2's head has no bias, so this checkpoint cannot be exported"
        )
    return {
        native_name(name): tensor.T if name == TRANSPOSED else tensor
        for name, tensor in weights.items()
        if name != DROPPED
    }


def native_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json with native names for Microsoft's vision settings. A native config stays unchanged."""
    vision = dict(config.get("vision_config") or {})
    if "dim_embed" in vision:
        vision.setdefault("embed_dim", vision["dim_embed"])
        vision.setdefault("max_position_embeddings", vision["image_pos_embed"]["max_pos_embeddings"])
        temporal = vision["visual_temporal_embedding"]["max_temporal_embeddings"]
        vision.setdefault("max_temporal_embeddings", temporal)
    text = {**(config.get("text_config") or {}), "model_type": "bart"}
    kept = {key: value for key, value in config.items() if key not in ("auto_map", "vocab_size", "projection_dim")}
    return {**kept, "vision_config": {**vision, "model_type": "florence_vision"}, "text_config": text}


def complete_tokenizer(tokenizer: Tokenizer) -> None:
    """Add the tokens that Microsoft's processor adds. Tokens that exist already keep their ids."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS])
