"""The parity report: what was exported against the checkpoint, as transformers runs it, stage by stage.

`export.pipeline` calls `parity_report` on the staged files, before they replace anything. The reference reads the
checkpoint by itself (`from_pretrained`), so a mistake in `export.checkpoint` shows as well.
Shapes: B pictures, H x W pixels, T image tokens, D = d_model, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, Florence2ForConditionalGeneration, GenerationConfig

from export import vision
from export.checkpoint import Checkpoint
from export.language import language_tensors
from florence2.config import GenerationOptions, ImageConfig, ModelConfig
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.tasks import TASKS

BATCHES = (1, 3)
# float32 sums in another order: 2e-6 is usual, and features have a spread of about 1
TOLERANCE = 1e-3
ASKED = ("<CAPTION>", "<OD>", "<OCR_WITH_REGION>")
NEW_TOKENS = 24  # enough for beams to part and meet, and short on base and large


@dataclass(frozen=True)
class StageReport:
    """One line of the report."""

    stage: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.stage:<8} {'ok    ' if self.passed else 'FAILED'} {self.detail}"


def parity_report(checkpoint: Checkpoint, onnx_file: Path, decoder: Path) -> Iterator[StageReport]:
    """Yields the stages as they are done. `decoder`: folder of the exported language model."""
    reference = load_reference(checkpoint)
    pictures = draw_pictures(checkpoint.config.image, max(BATCHES))
    ours, theirs = run_vision(onnx_file, pictures), reference_features(checkpoint, reference, pictures)
    yield compare_features(ours, theirs)
    yield compare_weights(decoder, reference)
    prompts = [_prompt(checkpoint, task) for task in ASKED]
    yield compare_answers(Engine.load(decoder), reference, ours[-1], theirs, prompts)


def load_reference(checkpoint: Checkpoint) -> Florence2ForConditionalGeneration:
    """transformers' model of the checkpoint in float32."""
    if checkpoint.microsoft:  # transformers alone does not read this layout
        source, weights = None, checkpoint.weights
    else:
        source, weights = checkpoint.directory, None
    model: Florence2ForConditionalGeneration = Florence2ForConditionalGeneration.from_pretrained(
        source, config=checkpoint.architecture, state_dict=weights, dtype=torch.float32, use_safetensors=True
    )
    return model.eval()


def draw_pictures(image: ImageConfig, count: int) -> list[Image.Image]:
    """Pictures of the model's own size, so that no resize comes between: shapes, a gradient and noise, seeded."""
    random = np.random.default_rng(2)
    pictures = []
    for _ in range(count):
        noise = random.integers(0, 60, (image.height, image.width, 3))
        slope = np.linspace(0, 190, image.width)[None, :, None] * random.random(3)
        picture = Image.fromarray((noise + slope).astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        for _ in range(4):
            left, top = random.uniform(0, 0.6, 2) * (image.width, image.height)
            box = (left, top, left + image.width / 4, top + image.height / 4)
            draw = pen.ellipse if random.random() < 0.5 else pen.rectangle
            draw(box, fill=tuple(int(value) for value in random.integers(0, 256, 3)))
        pictures.append(picture)
    return pictures


def run_vision(onnx_file: Path, pictures: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
    """The exported encoder's features [B, T, D] for each of BATCHES; a batch takes the last B pictures."""
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    pixels = np.stack([np.asarray(picture) for picture in pictures])  # uint8 [B, H, W, 3]
    return [session.run([vision.OUTPUT], {vision.INPUT: pixels[-size:]})[0] for size in BATCHES]


def reference_features(
    checkpoint: Checkpoint, reference: Florence2ForConditionalGeneration, pictures: Sequence[Image.Image]
) -> NDArray[np.float32]:
    """float32 [B, T, D] of all pictures, through the checkpoint's own image processor."""
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint.directory)
    pixel_values = processor(list(pictures), return_tensors="pt").pixel_values
    with torch.inference_mode():
        features: Tensor = reference.model.get_image_features(pixel_values).pooler_output
    return features.numpy()


def compare_features(ours: Sequence[NDArray[np.float32]], theirs: NDArray[np.float32]) -> StageReport:
    errors = np.concatenate([np.abs(batch - theirs[-len(batch) :]).ravel() for batch in ours])
    worst, mean = float(errors.max()), float(errors.mean())
    batches = " and ".join(str(len(batch)) for batch in ours)
    return StageReport(
        "vision",
        bool(np.isfinite(worst)) and worst <= TOLERANCE,
        f"largest error {worst:.1e}, mean {mean:.1e}, in batches of {batches} (at most {TOLERANCE:.0e})",
    )


def compare_weights(decoder: Path, reference: Florence2ForConditionalGeneration) -> StageReport:
    """Every exported tensor bit for bit, whatever the file leaves out is a copy of the embedding."""
    ours = load_file(decoder / "model.safetensors")
    theirs = language_tensors(reference.state_dict())
    copies = {name for name in theirs.keys() - ours.keys() if torch.equal(theirs[name], ours["shared.weight"])}
    different = sorted(
        name
        for name in (theirs.keys() | ours.keys()) - copies
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    )
    detail = f"{len(ours) - len(different)} of {len(ours)} tensors equal"
    return StageReport("language", not different, detail + (f", not {different[0]}" if different else ""))


def compare_answers(
    engine: Engine,
    reference: Florence2ForConditionalGeneration,
    ours: NDArray[np.float32],
    theirs: NDArray[np.float32],
    prompts: Sequence[list[int]],
) -> StageReport:
    """Tokens of the whole exported path against `generate`: prompt i about picture i, greedy and with beams.

    ours, theirs: features [B, T, D] of the same pictures.
    """
    config = engine.config
    beams = sorted({1, config.generation.num_beams})
    cases = [(picture, _options(config, count)) for picture in range(len(prompts)) for count in beams]
    answers = engine.generate([Request(ours[picture], prompts[picture], options) for picture, options in cases])
    equal = [
        list(answer.tokens)
        == reference_tokens(reference, config, torch.from_numpy(theirs[picture]), prompts[picture], options)
        for answer, (picture, options) in zip(answers, cases, strict=True)
    ]
    counts = " and ".join(str(count) for count in beams)
    detail = f"{sum(equal)} of {len(equal)} have transformers' tokens ({counts} beams, {NEW_TOKENS} tokens)"
    return StageReport("answers", all(equal), detail)


def _prompt(checkpoint: Checkpoint, task: str) -> list[int]:
    ids: list[int] = checkpoint.tokenizer.encode(f"<s>{TASKS[task].prompt}</s>", add_special_tokens=False).ids
    return ids


def _options(config: ModelConfig, beams: int) -> GenerationOptions:
    return GenerationOptions.resolve(config, num_beams=beams, max_new_tokens=min(NEW_TOKENS, config.max_new_tokens))


def reference_tokens(
    reference: Florence2ForConditionalGeneration,
    config: ModelConfig,
    features: Tensor,
    prompt_ids: list[int],
    options: GenerationOptions,
) -> list[int]:
    """transformers' answer without the start token. features: [T, D]; padding rows of the embedding never win."""
    tokens = config.tokens
    prompt = reference.get_input_embeddings()(torch.tensor([prompt_ids]))  # [1, P, D]
    encoder_input = torch.cat([features[None], prompt], dim=1)  # [1, T + P, D]
    generation = GenerationConfig(
        do_sample=False,
        max_new_tokens=options.max_new_tokens,
        num_beams=options.num_beams,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        bos_token_id=tokens.bos,
        pad_token_id=tokens.pad,
        eos_token_id=tokens.eos,
        decoder_start_token_id=tokens.decoder_start,
        forced_bos_token_id=config.generation.forced_bos,
        forced_eos_token_id=config.generation.forced_eos,
        suppress_tokens=list(range(tokens.known, config.text.vocab_size)) or None,
    )
    with torch.inference_mode():
        encoded = reference.model.language_model.encoder(inputs_embeds=encoder_input)
        sequences: Tensor = reference.generate(encoder_outputs=encoded, generation_config=generation)
    answer: list[int] = sequences[0, 1:].tolist()
    return answer
