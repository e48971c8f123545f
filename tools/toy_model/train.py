"""Train the demo checkpoint on drawn scenes, for a number of minutes: `python -m tools.toy_model.train`. Resumable.

Phase 1 ("dense") trains only the vision tower, through a linear head that is thrown away afterwards. Phase 2 ("text")
trains the whole model on prompts and answers and keeps the dense loss: with only the text loss the model does not
learn to look at the image. `--init CHECKPOINT` skips phase 1 and starts from another checkpoint's weights.

The state is kept in tools/toy_model/.training; run the same command again to resume. Every save writes the averaged
weights as a checkpoint to tools/toy_model/.training/checkpoint, and the end of the run writes them to --out.
"""

import argparse
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from tools.toy_model import architecture
from tools.toy_model.batches import Batch, SceneBatches
from tools.toy_model.losses import DENSE_SIZES, answer_logits, dense_loss, text_loss
from tools.toy_model.scenes import FIRST_TRAINING_SEED

FOLDER = Path(__file__).parent

DENSE_WEIGHT = 0.3
SOFTNESS = {"first": 10.0, "last": 3.0}
AVERAGE_DECAY = 0.995
SAVE_EVERY_SECONDS = 240


@dataclass
class Progress:
    """What a phase has done so far, including earlier runs."""

    phase: str
    minutes: float = 0.0
    steps: int = 0
    images: int = 0
    next_seed: int = FIRST_TRAINING_SEED


@dataclass
class Phase:
    """The settings of a phase."""

    name: str
    minutes: float
    batch_size: int
    peak_rate: float
    warmup_steps: int = 150
    constant_share: float = 0.4

    def learning_rate(self, progress: Progress) -> float:
        """Return the rate: up in `warmup_steps`, then constant, then down to zero along a cosine of the time."""
        done = min(1.0, progress.minutes / self.minutes)
        falling = max(0.0, (done - self.constant_share) / (1 - self.constant_share))
        warm = min(1.0, (progress.steps + 1) / self.warmup_steps)
        return self.peak_rate * warm * max(0.005, 0.5 * (1 + math.cos(math.pi * falling)))

    def softness(self, progress: Progress) -> float:
        done = min(1.0, progress.minutes / self.minutes / 0.9)
        return SOFTNESS["first"] * (SOFTNESS["last"] / SOFTNESS["first"]) ** done


@dataclass
class Trainer:
    """The model, its throw-away head, the averaged weights and the state on disk."""

    model: Florence2ForConditionalGeneration
    processor: Florence2Processor
    folder: Path
    progress: Progress
    first_location: int = field(init=False)
    head: nn.Linear = field(init=False)
    average: list[Tensor] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        width = self.model.config.vision_config.embed_dim[-1]
        self.head = nn.Linear(width, sum(DENSE_SIZES.values()))
        self.first_location = self.processor.tokenizer.convert_tokens_to_ids("<loc_0>")
        self.start_phase(self.progress.phase)

    def start_phase(self, name: str) -> None:
        self.progress = Progress(name, next_seed=self.progress.next_seed)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.02)
        self.average = [parameter.detach().clone() for parameter in self.model.parameters()]

    def run(self, phase: Phase) -> None:
        """Train until the phase's minutes, including those of earlier runs, are used up."""
        batches = SceneBatches(self.processor.tokenizer, phase.batch_size, self.progress.next_seed)
        loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=6)
        earlier, started = self.progress.minutes, time.monotonic()
        report, saved = Report(phase, started), started
        for batch in loader:
            report.add(self.step(phase, batch), self.progress)
            self.progress.minutes = earlier + (time.monotonic() - started) / 60
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                self.save()
                saved = time.monotonic()
            if self.progress.minutes >= phase.minutes:
                break
        self.save()

    def step(self, phase: Phase, batch: Batch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = phase.learning_rate(self.progress)
        loss, figures = self.losses(phase, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.update_average()
        self.progress.steps += 1
        self.progress.images += len(batch.pixels)
        self.progress.next_seed += len(batch.pixels)
        return figures

    def losses(self, phase: Phase, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        vision = self.model.get_image_features(batch.pixels)
        cells = self.head(vision.last_hidden_state.permute(0, 2, 3, 1))
        dense, figures = dense_loss(cells, batch.labels)
        if phase.name == "dense":
            return dense, {"loss": dense.item()} | figures
        logits, truth = answer_logits(self.model, vision.pooler_output, batch)
        text, text_figures = text_loss(logits, truth, self.first_location, phase.softness(self.progress))
        return text + DENSE_WEIGHT * dense, {"loss": text.item()} | text_figures | figures

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the running average of the weights, which is saved because it is better than the last weights."""
        decay = min(AVERAGE_DECAY, (1 + self.progress.steps) / (10 + self.progress.steps))
        torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }
        torch.save(state, self.folder / "state.new")
        os.replace(self.folder / "state.new", self.folder / "state.pt")
        self.export(self.folder / "checkpoint")

    def load(self) -> None:
        state = torch.load(self.folder / "state.pt")
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a checkpoint."""
        parameters = list(self.model.parameters())
        current = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, self.average)
            architecture.save(self.model, self.processor, folder)
            torch._foreach_copy_(parameters, current)


@dataclass
class Report:
    """Print the means of the last steps' figures, the rate and the time left."""

    phase: Phase
    started: float
    every: int = 50
    rows: list[dict[str, float]] = field(default_factory=list)
    images: int = 0

    def add(self, figures: dict[str, float], progress: Progress) -> None:
        self.rows.append(figures)
        self.images += self.phase.batch_size
        if len(self.rows) < self.every:
            return
        means = {name: np.nanmean([row[name] for row in self.rows]) for name in figures}
        rate = self.images / (time.monotonic() - self.started)
        left = self.phase.minutes - progress.minutes
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
        print(
            f"{self.phase.name} {progress.steps} ({progress.images} images): {numbers}; "
            f"{rate:.1f} images/s, {left:.0f} minutes left",
            flush=True,
        )
        self.rows.clear()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint on drawn scenes.")
    parser.add_argument("--init", type=Path, help="start phase 2 from this checkpoint instead of from nothing")
    parser.add_argument("--dense-minutes", type=float, default=40, help="length of phase 1")
    parser.add_argument("--minutes", type=float, default=150, help="length of phase 2")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="peak learning rate of phase 2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="more than one only pays on an idle machine")
    parser.add_argument("--seed", type=int, default=FIRST_TRAINING_SEED, help="of the first scene")
    parser.add_argument("--state", type=Path, default=FOLDER / ".training")
    parser.add_argument("--out", type=Path, help="write the final checkpoint here, too")
    return parser.parse_args()


def start(options: argparse.Namespace) -> Trainer:
    """Resume from the saved state, or start from a checkpoint or from nothing."""
    kept = options.state / "checkpoint"
    if (options.state / "state.pt").exists():
        model, processor = architecture.load(kept)
        trainer = Trainer(model, processor, options.state, Progress("text"))
        trainer.load()
        return trainer
    if options.init:
        model, processor = architecture.load(options.init)
        return Trainer(model, processor, options.state, Progress("text", next_seed=options.seed))
    processor = architecture.new_processor()
    model = architecture.new_model(processor)
    return Trainer(model, processor, options.state, Progress("dense", next_seed=options.seed))


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    trainer = start(options)
    trainer.model.train()
    if trainer.progress.phase == "dense":
        trainer.run(Phase("dense", options.dense_minutes, 2 * options.batch_size, 1.5e-3))
        trainer.start_phase("text")
    trainer.run(Phase("text", options.minutes, options.batch_size, options.rate))
    if options.out:
        trainer.export(options.out)


if __name__ == "__main__":
    main()
