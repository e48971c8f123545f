"""Export a checkpoint: read it, write both models and the configs, compare, and move the result to its place."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from florence2.config import FILE_NAME
from florence2.errors import CheckpointError
from florence2_export import installation, language, repository, settings, targets, vision
from florence2_export.checkpoint import Checkpoint, read_checkpoint
from florence2_export.parity import parity_report

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What `--target`, `--precision` and `--accelerator` mean: cpu or gpu, and how each model runs there."""

    device: str
    vision: str
    language: str
    accelerator: str | None  # of the vision encoder on a GPU

    @classmethod
    def of(cls, device: str, precision: str, accelerator: str | None) -> Plan:
        """Return the plan that these options ask for. Raise CheckpointError if the device cannot follow it."""
        encoder = targets.vision_precision(device, precision)
        decoder = language.choose_precision(precision, device)
        return cls(device, encoder, decoder, targets.choose_accelerator(device, accelerator, encoder))


def print_at_once(line: str) -> None:
    """Print a line without buffering, so that a pipe shows it when its step begins."""
    print(line, flush=True)


def export_checkpoint(
    source: str,
    target: Path,
    name: str = "florence2",
    output: Say = print_at_once,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    processor: str | None = None,
    subfolder: str | None = None,
    image_size: int | None = None,
    precision: str = "auto",
    add_version: bool = False,
    device: str = "cpu",
    accelerator: str | None = None,
    answers: Mapping[str, str] | None = None,
    max_prompt_tokens: int | None = None,
) -> bool:
    """Write the models to `target` and return True, or leave it unchanged and return False if the comparison fails.

    `image_size` is the side in pixels to resize images to, or None for the checkpoint's own.
    `precision` is float32, bfloat16, int8, int4, float16, or auto, which each model interprets. `device` is cpu or gpu.
    `accelerator` is cuda or tensorrt, or None for the default. `answers` names the form in which the server parses the
    answers to a fine-tune's own prompts. `max_prompt_tokens` bounds prompts, and the memory that is kept for each
    request. `add_version` keeps the present models as the previous version. Raise CheckpointError if the checkpoint
    cannot be exported or the target cannot be written.
    """
    started = time.monotonic()

    def say(line: str) -> None:
        output(f"[{time.monotonic() - started:6.1f} s] {line}")

    repository.check_target(target, name)
    plan = Plan.of(device, precision, accelerator)
    say(f"reading {source}" + (f" with the adapter {adapter}" if adapter else ""))
    checkpoint = read_checkpoint(source, revision, adapter, processor, subfolder, image_size)
    config = replace(checkpoint.config, answers=dict(answers or {}))
    checkpoint = replace(checkpoint, config=settings.limit_prompts(config, max_prompt_tokens))
    for note in checkpoint.notes:
        say(f"  note: {note}")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    version = installation.next_version(target, name) if add_version else 1
    with installation.staging(target) as stage:
        _build(checkpoint, stage, name, version, plan, say)
        say("comparing the export with the checkpoint in transformers")
        if not _compare(checkpoint, stage, name, version, plan, say):
            say(f"the export differs from the checkpoint where the report says FAILED, so {target} stays unchanged")
            return False
        size = sum(file.stat().st_size for file in stage.rglob("*") if file.is_file())
        if add_version:
            installation.add(stage, target, name, version)
        else:
            installation.replace(stage, target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # Linux counts in KiB
    say(f"{target} is ready: version {version}, {size / 1e6:.0f} MB, peak memory of the export {peak:.1f} GiB")
    return True


def _build(checkpoint: Checkpoint, stage: Path, name: str, version: int, plan: Plan, say: Say) -> None:
    """Write all models to `stage`."""
    config = checkpoint.config
    preprocess, encoder, decoder, postprocess, _ = (
        repository.version_directory(stage, name, role, version) for role in repository.ROLES
    )
    try:
        dims = repository.true_dims(config.image, config.text.d_model)
        chosen = {"target": plan.device, "vision_precision": plan.vision, "language_precision": plan.language}
        chosen["image_size"] = f"{config.image.width}x{config.image.height}"
        provenance = repository.read_provenance(checkpoint, chosen)
        repository.copy_template(stage, name, version, dims, provenance)
        targets.fit(stage, name, plan.device, plan.vision, plan.accelerator)
        for directory in (preprocess, decoder, postprocess):
            config.save(directory / FILE_NAME)
        for directory in (preprocess, postprocess):
            (directory / "tokenizer.json").write_text(checkpoint.tokenizer.to_str(pretty=True), encoding="utf-8")
        say(f"writing the vision encoder as ONNX, for {plan.vision} on a {plan.device.upper()}")
        metadata = {key: value for key, value in provenance.items() if key != "exported"}  # equal exports, equal files
        vision.export_vision(checkpoint, encoder / "model.onnx", plan.vision, metadata)
        say(f"writing the language model as safetensors, in {plan.language}")
        language.export_language_model(checkpoint.weights, decoder / "model.safetensors", plan.language, plan.device)
    except (OSError, SafetensorError) as error:
        # numpy and safetensors, which write most of the bytes, drop the system's reason.
        reason = getattr(error, "strerror", None) or f"the disk is full or limits the size of a file ({error})"
        raise CheckpointError(f"{stage.parent.parent} cannot be written: {reason}") from error


def _compare(checkpoint: Checkpoint, stage: Path, name: str, version: int, plan: Plan, say: Say) -> bool:
    """Show the parity report of the staged models. Return whether all of it passed."""
    encoder, decoder = (repository.version_directory(stage, name, role, version) for role in ("vision", "decoder"))
    passed = True
    for line in parity_report(checkpoint, encoder / "model.onnx", decoder, plan.vision, plan.language, plan.device):
        say(f"  {line}")
        passed = passed and line.passed
    return passed
