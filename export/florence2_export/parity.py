"""Compare the exported model with transformers on the same checkpoint, stage by stage: the parity report.

`pipeline` calls `parity_report` on the staged files before they replace anything. The exported model runs first and is
freed before the reference is loaded, so that only one of them is in memory at a time. An export for a GPU is judged by
the code that serves it there: on a GPU if there is one, otherwise with the same steps on the CPU.
Shapes: B images, H x W pixels, T image tokens, D = d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from florence2.config import FILE_NAME, ModelConfig
from florence2.contract import GenerationOptions
from florence2.engine.beam import Generation
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.engine.weights import load_language_model
from florence2.errors import Florence2Error, ServerError
from florence2.tasks import TASKS
from florence2.triton.onnx_session import Session, open_session
from florence2_export import vision
from florence2_export.checkpoint import Checkpoint
from florence2_export.language import language_tensors
from florence2_export.reference import load_reference, reference_features, reference_log_probs, reference_tokens
from florence2_export.repository import read_config
from florence2_export.sample_images import draw_images
from florence2_export.targets import as_triton_passes_it

BATCHES = (1, 2)
FLOAT32 = "float32"
# The order of sums differs, which usually makes float32 differ by 2e-6; features have a spread of about 1.
TOLERANCE = 1e-3
COMPARED_TASKS = ("<CAPTION>", "<OD>", "<OCR_WITH_REGION>")
NEW_TOKENS = 24  # enough for beams to diverge and merge, and quick on base and large
EMULATED = "emulated on a CPU"  # an export for a GPU where there is none


@dataclass(frozen=True)
class Bound:
    """The largest allowed mean errors of a precision: of features, in standard deviations, and of log-probs.

    A larger error means that something is broken. Answers that a precision changes are counted, but do not fail.
    """

    features: float
    log_probs: float


# 4 to 20 times the errors that rounding causes in the bundled checkpoint and in base with random weights: features
# 0.0002 to 0.0005 (float16), 0.004 to 0.015 (bfloat16), 0.003 (int8 weights only); log-probs 0.0011 to 0.0015, 0.009 to
# 0.014, 0.03, and 0.07 to 0.12 (int4, whose encoder is not int4). The steps of a GPU, emulated, make the same
# errors. Answers cannot be judged one by one: these errors change a quarter of the bundled checkpoint's in float16 and
# three fifths in bfloat16, with the same quality (docs/export.md).
BOUNDS = {"bfloat16": Bound(0.05, 0.1), "float16": Bound(0.01, 0.02), "int8": Bound(0.2, 0.3), "int4": Bound(0.05, 0.6)}


@dataclass(frozen=True)
class StageReport:
    """One line of the report."""

    stage: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.stage:<8} {'ok    ' if self.passed else 'FAILED'} {self.detail}"


@dataclass(frozen=True)
class Case:
    """One request of the comparison."""

    image: int  # its index
    prompt: list[int]
    options: GenerationOptions
    plain: bool  # greedy, without options that change scores


def parity_report(
    checkpoint: Checkpoint,
    onnx_file: Path,
    decoder: Path,
    vision_precision: str = FLOAT32,
    language_precision: str = FLOAT32,
    target: str = "cpu",
) -> Iterator[StageReport]:
    """Yield each stage's result as soon as it is known.

    `decoder` is the folder of the exported language model, `target` what the export is for: cpu or gpu.
    """
    images = draw_images(checkpoint.config.image, sum(BATCHES))
    session, place = open_encoder(onnx_file, target)
    ours = run_vision(session, images)
    del session
    cases = requests(checkpoint)
    failure: Florence2Error | None = None
    try:
        answers = run_language(decoder, ours, cases, target)
    except Florence2Error as error:  # numbers that are not finite
        failure = error
    device = decoder_device(target)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # the reference is float32
    reference = load_reference(checkpoint).to(device)
    theirs = reference_features(checkpoint, reference, images)
    yield compare_features(ours, theirs, vision_precision, place)
    if failure:
        yield StageReport("language", False, f"the exported model does not answer: {failure}")
        return
    if language_precision == FLOAT32:
        yield compare_weights(decoder, reference)
    place = place_name(device, target)
    yield compare_log_probs(answers, reference, checkpoint.config, ours, cases, language_precision, place)
    exact = vision_precision == language_precision == FLOAT32
    yield compare_answers(answers, reference, checkpoint.config, theirs, cases, exact)


def requests(checkpoint: Checkpoint) -> list[Case]:
    """Return two requests per image, with the task's prompt: one plain, one with the checkpoint's defaults."""
    config, cases = checkpoint.config, list[Case]()
    limit = min(NEW_TOKENS, config.max_new_tokens)
    least = min(limit, config.generation.min_new_tokens)
    usual = config.generation_options(max_new_tokens=limit, min_new_tokens=least, temperature=0)
    plain = replace(
        usual, num_beams=1, no_repeat_ngram_size=0, min_new_tokens=0, repetition_penalty=1.0,
        suppress_repeated_bos=False,
    )  # fmt: skip
    for image, task in enumerate(COMPARED_TASKS):
        prompt = checkpoint.tokenizer.encode(f"<s>{TASKS[task].prompt}</s>", add_special_tokens=False).ids
        cases += [Case(image, prompt, plain, plain=True), Case(image, prompt, usual, plain=False)]
    return cases


def decoder_device(target: str) -> torch.device:
    """Return where an export's language model runs in the comparison."""
    return torch.device("cuda:0" if target == "gpu" and torch.cuda.is_available() else "cpu")


def place_name(device: torch.device, target: str) -> str:
    """Return the report's words for how a model of an export was run."""
    if device.type == "cuda":
        return f"on {torch.cuda.get_device_name(device)}"
    return "on a CPU" if target == "cpu" else EMULATED


def open_encoder(onnx_file: Path, target: str) -> tuple[Session, str]:
    """Return the exported encoder as it will be served, and the report's words for how it runs."""
    config, device = as_triton_passes_it(read_config(onnx_file.parents[1])), decoder_device(target)
    if device.type == "cuda":
        try:
            return open_session(onnx_file, config, gpu=device.index), place_name(device, target)
        except ServerError as error:  # Triton's own backend may still be able to run it there
            return open_session(onnx_file, config), f"{EMULATED} ({error})"
    return open_session(onnx_file, config), place_name(device, target)


def run_vision(session: Session, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Return the features [B, T, D] of the exported encoder, which runs in BATCHES, as it will be served."""
    pixels = np.stack([np.asarray(image) for image in images])  # uint8 [B, H, W, 3]
    batches = np.split(pixels, np.cumsum(BATCHES)[:-1])
    return np.concatenate([session.run({vision.INPUT: batch})[vision.OUTPUT] for batch in batches])


def run_language(
    decoder: Path, features: NDArray[np.float32], cases: Sequence[Case], target: str = "cpu"
) -> list[Generation]:
    """Return the exported language model's answers, by the steps of the target. features: [B, T, D]."""
    rows = max(case.options.num_beams for case in cases)  # of one request at a time, which takes less memory
    if target == "cpu":
        engine = Engine.load(decoder, rows=rows)
    else:
        config = ModelConfig.load(decoder / FILE_NAME)
        model = load_language_model(decoder, config, decoder_device(target))
        engine = Engine(CudaBackend(model, config, rows), config)
    return engine.generate([Request(features[case.image], case.prompt, case.options) for case in cases])


def compare_features(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], precision: str = FLOAT32, place: str = "on a CPU"
) -> StageReport:
    """Compare the encoders' features [B, T, D] of the same images."""
    errors = np.abs(ours - theirs)  # [B, T, D]
    bound = None if precision == FLOAT32 else BOUNDS[precision].features * float(theirs.std())
    return _judge("vision", f"features in {precision}, {place}", float(errors.max()), float(errors.mean()), bound)


def _judge(stage: str, what: str, largest: float, mean: float, bound: float | None) -> StageReport:
    """Judge float32, which has no bound, by its largest error. A lower precision has outliers; judge its mean error."""
    which, error, allowed = ("largest", largest, TOLERANCE) if bound is None else ("mean", mean, bound)
    detail = f"{what}: {which} error {error:.2g}, at most {allowed:.2g} allowed"
    return StageReport(stage, bool(np.isfinite(largest)) and error <= allowed, detail)


def compare_weights(decoder: Path, reference: Florence2ForConditionalGeneration) -> StageReport:
    """Compare each tensor of the language model bit for bit. A tensor not in the file is a copy of the embedding."""
    theirs = language_tensors(reference.state_dict())
    different: list[str] = []
    with safe_open(decoder / "model.safetensors", "pt") as file:
        ours = set(file.keys())
    for name in sorted(theirs.keys() | ours):
        with safe_open(decoder / "model.safetensors", "pt") as file:  # opened again, which frees the tensor before
            stored = file.get_tensor(name if name in ours else "shared.weight")
            if name not in theirs or not torch.equal(stored, theirs[name]):
                different.append(name)
    detail = f"{len(ours)} tensors of the language model compared bit for bit: "
    detail += f"{len(different)} differ, among them {different[0]}" if different else "all are equal"
    return StageReport("weights", not different, detail)


def compare_log_probs(
    answers: Sequence[Generation],
    reference: Florence2ForConditionalGeneration,
    config: ModelConfig,
    features: NDArray[np.float32],
    cases: Sequence[Case],
    precision: str = FLOAT32,
    place: str = "on a CPU",
) -> StageReport:
    """Compare only the language model: the reference scores the tokens of plain requests on the same `features`."""
    errors: list[Tensor] = []
    for answer, case in zip(answers, cases, strict=True):
        if case.plain:
            seen = torch.from_numpy(features[case.image])
            theirs = reference_log_probs(reference, config, seen, case.prompt, answer.tokens)
            errors.append((torch.tensor(answer.log_probs) - theirs)[1:-1].abs())  # the first and the last may be forced
    error = torch.cat(errors)
    if not len(error):
        return StageReport("language", False, "no token could be compared: the checkpoint's plain answers are empty")
    bound = None if precision == FLOAT32 else BOUNDS[precision].log_probs
    what = f"{len(error)} log-probs in {precision}, {place}"
    return _judge("language", what, float(error.max()), float(error.mean()), bound)


def compare_answers(
    answers: Sequence[Generation],
    reference: Florence2ForConditionalGeneration,
    config: ModelConfig,
    theirs: NDArray[np.float32],
    cases: Sequence[Case],
    exact: bool = True,
) -> StageReport:
    """Compare the answers of both exported models with transformers' `generate` on its own features [B, T, D].

    If `exact`, all must be equal. If not, the report counts the answers that a lower precision changes.
    """
    equal = [
        list(answer.tokens)
        == reference_tokens(reference, config, torch.from_numpy(theirs[case.image]), case.prompt, case.options)
        for answer, case in zip(answers, cases, strict=True)
    ]
    beams = " and ".join(str(count) for count in sorted({case.options.num_beams for case in cases}))
    detail = f"{sum(equal)} of {len(equal)} have transformers' tokens" + (f", with {beams} beams" if exact else "")
    if not all(equal):
        detail += "; all must have them" if exact else " in float32; rounding changes the others"
    return StageReport("answers", all(equal) or not exact, detail)
