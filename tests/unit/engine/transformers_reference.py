"""transformers' Florence-2 and the engine on the same weights, which may be random."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GenerationConfig,
)

from florence2.engine.backend import Backend
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.engine.weights import build_language_model
from florence2.locations import NEAR
from florence2_export.checkpoint import Checkpoint
from florence2_export.language import language_tensors
from tests.reference import DEMO


@dataclass
class Reference:
    """transformers' model and the engine, on the same weights."""

    model: Florence2ForConditionalGeneration
    checkpoint: Checkpoint

    @property
    def untrained(self) -> list[int]:
        """Rows of the embedding that no checkpoint ever trained; transformers must be told to leave them out."""
        return list(range(self.checkpoint.config.tokens.known, self.checkpoint.config.text.vocab_size))

    def engine(self, backend: type[Backend] = CpuBackend) -> Engine:
        config = self.checkpoint.config
        model = build_language_model(language_tensors(self.checkpoint.weights), config, "float32")
        return Engine(backend(model, config, 24), config)

    def features(self, seed: int) -> np.ndarray:
        """Return the features of a random image, float32 [image tokens, d_model]."""
        image = self.checkpoint.config.image
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randn(1, 3, image.height, image.width, generator=random)
        with torch.inference_mode():
            return self.model.get_image_features(pixels).pooler_output[0].numpy()

    def log_masses(self, request: Request, tokens: tuple[int, ...]) -> list[float]:
        """Return the log of what transformers' model gives, without rules, to each token and the locations near it."""
        ids = self.checkpoint.config.tokens
        prompt = self.model.get_input_embeddings()(torch.tensor([request.prompt_ids]))
        inputs = torch.cat([torch.from_numpy(request.image_features)[None], prompt], dim=1)
        given = torch.tensor([[ids.decoder_start, *tokens[:-1]]])
        with torch.inference_mode():
            encoded = self.model.model.language_model.encoder(inputs_embeds=inputs)
            logits = self.model(encoder_outputs=encoded, decoder_input_ids=given).logits[0]
        masses = []
        for token, probabilities in zip(tokens, logits.double().softmax(-1), strict=True):
            locations = probabilities[ids.first_location : ids.first_location + 1000]
            place = token - ids.first_location
            near = locations[max(0, place - NEAR) : place + NEAR + 1] if 0 <= place < 1000 else probabilities[token]
            masses.append(float(near.sum().log()))
        return masses

    def generate(self, request: Request) -> tuple[list[int], float | None]:
        """Return transformers' tokens without the start token, and its sequences_scores (None for one beam)."""
        answer = self.output(request)
        score = float(answer.sequences_scores[0]) if request.options.num_beams > 1 else None
        return answer.sequences[0, 1:].tolist(), score

    def output(self, request: Request):
        """Return all that transformers' `generate` returns."""
        image_ids = [self.model.config.image_token_id] * self.checkpoint.config.image.tokens
        features = torch.from_numpy(request.image_features)[None]
        embed = self.model.get_input_embeddings()
        inputs = torch.cat([features, embed(torch.tensor([request.prompt_ids]))], dim=1)
        options = request.options
        flags = {}
        if options.num_beams > 1:
            flags = dict(length_penalty=options.length_penalty, early_stopping=options.early_stopping)
        if options.temperature:
            names = ("temperature", "top_k", "top_p")
            flags = dict(do_sample=True, **{name: getattr(options, name) for name in names})
        bos = self.checkpoint.config.tokens.bos
        with torch.inference_mode():
            return self.model.generate(
                input_ids=torch.tensor([[*image_ids, *request.prompt_ids]]),
                encoder_outputs=self.model.model.language_model.encoder(inputs_embeds=inputs),
                max_new_tokens=options.max_new_tokens,
                num_beams=options.num_beams,
                no_repeat_ngram_size=options.no_repeat_ngram_size,
                min_new_tokens=options.min_new_tokens,
                repetition_penalty=options.repetition_penalty,
                bad_words_ids=[[bos, bos]] if options.suppress_repeated_bos else None,
                **flags,
                suppress_tokens=self.untrained or None,
                return_dict_in_generate=True,
                output_scores=True,
            )


def random_checkpoint(directory: Path, seed: int, untied: bool = False, **text) -> Path:
    """Write a checkpoint of another geometry with the demo's tokenizer; large weights make its answers varied."""
    config = Florence2Config.from_pretrained(DEMO)
    for key, value in text.items():
        setattr(config.text_config, key, value)
    config.text_config.init_std = 0.12
    config.vision_config.projection_dim = config.text_config.d_model
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(config)
    if untied:
        for module in (model.model.language_model.decoder.embed_tokens, model.lm_head):
            module.weight = torch.nn.Parameter(module.weight + 0.05 * torch.randn_like(module.weight))
    model.generation_config = GenerationConfig.from_pretrained(DEMO)
    model.save_pretrained(directory)
    AutoProcessor.from_pretrained(DEMO).save_pretrained(directory)
    return directory
