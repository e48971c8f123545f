"""Run transformers' Florence-2, the reference of the parity report.

transformers reads the checkpoint itself (`from_pretrained`) if it can, which reveals mistakes of `checkpoint`.
Shapes: B images, T image tokens, D = d_model, P prompt tokens, N generated tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, Florence2ForConditionalGeneration, GenerationConfig

from florence2.config import ModelConfig
from florence2.contract import GenerationOptions
from florence2_export.checkpoint import Checkpoint


def load_reference(checkpoint: Checkpoint) -> Florence2ForConditionalGeneration:
    """Return transformers' model of the checkpoint in float32."""
    model: Florence2ForConditionalGeneration = Florence2ForConditionalGeneration.from_pretrained(
        checkpoint.source.directory if checkpoint.readable else None,
        config=checkpoint.architecture,
        state_dict=None if checkpoint.readable else checkpoint.weights,
        dtype=torch.float32,
        use_safetensors=True,
        generation_config=GenerationConfig(),  # else rules of the file, which the server does not have, would apply
    )
    return model.eval()


def reference_features(
    checkpoint: Checkpoint, reference: Florence2ForConditionalGeneration, images: Sequence[Image.Image]
) -> NDArray[np.float32]:
    """Return float32 [B, T, D], image by image, made with the checkpoint's own image processor."""
    config = checkpoint.config.image
    size = {"height": config.height, "width": config.width}  # which the file may say in another form
    processor = CLIPImageProcessorPil.from_pretrained(
        checkpoint.processor.directory, size=size, crop_size=size, do_center_crop=False
    )
    features: list[Tensor] = []
    with torch.inference_mode():
        for image in images:
            pixel_values = processor(image, return_tensors="pt").pixel_values.to(reference.device)
            features.append(reference.model.get_image_features(pixel_values).pooler_output)
    return torch.cat(features).cpu().numpy()


def reference_log_probs(
    reference: Florence2ForConditionalGeneration,
    config: ModelConfig,
    features: Tensor,
    prompt_ids: list[int],
    tokens: Sequence[int],
) -> Tensor:
    """Return the log-probs [N] of an answer's tokens, each given all tokens before it. features: [T, D]."""
    inputs = torch.tensor([[config.tokens.decoder_start, *tokens[:-1]]], device=reference.device)  # [1, N]
    with torch.inference_mode():
        logits: Tensor = reference(
            encoder_outputs=_encode(reference, features, prompt_ids), decoder_input_ids=inputs
        ).logits[0]  # [N, V]
        return logits.log_softmax(-1)[range(len(tokens)), list(tokens)].cpu()


def _encode(reference: Florence2ForConditionalGeneration, features: Tensor, prompt_ids: list[int]) -> Any:
    """Return transformers' encoder output for an image's features [T, D] and a prompt."""
    prompt = reference.get_input_embeddings()(torch.tensor([prompt_ids], device=reference.device))  # [1, P, D]
    image = features[None].to(reference.device)
    return reference.model.language_model.encoder(inputs_embeds=torch.cat([image, prompt], dim=1))


def generation_config(config: ModelConfig, options: GenerationOptions) -> GenerationConfig:
    """Return options with which transformers' `generate` finds the most likely answer under the server's rules."""
    tokens, given = config.tokens, dataclasses.asdict(options)  # which have transformers' names, but for these
    for name in ("temperature", "top_k", "top_p", "seed"):
        del given[name]
    return GenerationConfig(
        bad_words_ids=[[tokens.bos, tokens.bos]] if given.pop("suppress_repeated_bos") else None,
        **given,
        do_sample=False,
        bos_token_id=tokens.bos,
        pad_token_id=tokens.pad,
        eos_token_id=tokens.eos,
        decoder_start_token_id=tokens.decoder_start,
        forced_bos_token_id=config.generation.forced_bos,
        forced_eos_token_id=config.generation.forced_eos,
        suppress_tokens=list(range(tokens.known, config.text.vocab_size)) or None,
    )


def reference_tokens(
    reference: Florence2ForConditionalGeneration,
    config: ModelConfig,
    features: Tensor,
    prompt_ids: list[int],
    options: GenerationOptions,
) -> list[int]:
    """Return transformers' most likely answer without the start token or padding rows. features: [T, D]."""
    generation = generation_config(config, options)
    with torch.inference_mode():
        encoded = _encode(reference, features, prompt_ids)
        sequences: Tensor = reference.generate(encoder_outputs=encoded, generation_config=generation)
    answer: list[int] = sequences[0, 1:].tolist()
    return answer
