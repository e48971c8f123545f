"""Answer with plain transformers: processor, `generate`, post-processing, as its users write it.

The static batch has a copy of this file next to its model.py, so it imports nothing of this project.
"""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration, StoppingCriteria, StoppingCriteriaList

SPECIAL = re.compile("<s>|</s>|<pad>")
TASK = re.compile("<[A-Z_]+>")


class Answer(NamedTuple):
    result: Any  # of post_process_generation
    text: str  # location tokens kept
    tokens: int


class OwnLimit(StoppingCriteria):
    """A separate limit for each image of a batch, where MaxLengthCriteria has one for all."""

    def __init__(self, limits: list[int]) -> None:
        self.limits = torch.tensor(limits)

    def __call__(self, input_ids: torch.Tensor, scores: object, **_options: object) -> torch.Tensor:
        hypotheses = input_ids.shape[0] // len(self.limits)
        return input_ids.shape[1] - 1 >= self.limits.repeat_interleave(hypotheses)


class Generator:
    """A checkpoint's model and processor in transformers, and `options` of each call of `generate`."""

    def __init__(
        self,
        checkpoint: Path,
        dtype: torch.dtype,
        model: Florence2ForConditionalGeneration | None = None,
        **options: Any,
    ) -> None:
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = model or Florence2ForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()
        self.options = options

    @torch.inference_mode()
    def answer(self, images: list[bytes], prompts: list[str], limits: list[int], beams: int) -> list[Answer]:
        """Answer a batch; a prompt is the task followed by its text, if any, and `limits` are the most new tokens."""
        opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
        inputs = self.processor(images=opened, text=prompts, return_tensors="pt", padding=True).to(self.model.dtype)
        generated = self.model.generate(
            **inputs,
            num_beams=beams,
            max_new_tokens=max(limits),
            **self.options,
            stopping_criteria=StoppingCriteriaList([OwnLimit(limits)] if len(set(limits)) > 1 else []),
        )
        texts = self.processor.batch_decode(generated, skip_special_tokens=False)
        tokens = (generated[:, 1:] != self.model.generation_config.pad_token_id).sum(1).tolist()
        return [
            Answer(self._parse(text, prompt, image.size), SPECIAL.sub("", text), count)
            for text, prompt, image, count in zip(texts, prompts, opened, tokens, strict=True)
        ]

    def _parse(self, text: str, prompt: str, size: tuple[int, int]) -> Any:
        task = TASK.match(prompt)
        assert task is not None
        return self.processor.post_process_generation(text, task=task.group(), image_size=size)
