"""Turn scenes into batches of tensors for `train.py`, endlessly, in a data loader's process."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from tools.toy_model import scenes
from tools.toy_model.answers import Example
from tools.toy_model.architecture import GRID, IMAGE_SIZE, PAD
from tools.toy_model.shapes import COLORS, KINDS, WORDS, Box, center

TASKS_PER_IMAGE = 5
# The model learns phrase grounding slowest and short texts fastest, so harder tasks are drawn more often.
TASK_WEIGHTS = {
    "<CAPTION_TO_PHRASE_GROUNDING>": 3.0,
    "<REFERRING_EXPRESSION_SEGMENTATION>": 3.0,
    "<OPEN_VOCABULARY_DETECTION>": 2.5,
    "<OCR_WITH_REGION>": 2.0,
    "<REGION_PROPOSAL>": 1.5,
    "<REGION_TO_SEGMENTATION>": 1.2,
    "<OD>": 1.0,
    "<DENSE_REGION_CAPTION>": 1.0,
    "<CAPTION>": 0.5,
    "<DETAILED_CAPTION>": 0.5,
    "<MORE_DETAILED_CAPTION>": 0.5,
    "<OCR>": 0.5,
    "<REGION_TO_CATEGORY>": 0.4,
    "<REGION_TO_DESCRIPTION>": 0.4,
    "<REGION_TO_OCR>": 0.4,
}
PIXEL_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
PIXEL_STD = np.array([0.229, 0.224, 0.225], np.float32)
# The class of a grid cell without an object.
NOTHING = -100


@dataclass
class Batch:
    """B images with K questions each; boxes are relative to the center of their grid cell."""

    pixels: Tensor  # [B, 3, 192, 192]
    prompts: Tensor  # [B*K, P] token ids, padded right
    answers: Tensor  # [B*K, T] token ids, padded right, from <s> to </s>
    labels: dict[str, Tensor]  # kind, color, text: [B, G, G] class or NOTHING; shape_box, word_box: [B, G, G, 4]


class SceneBatches(IterableDataset):
    """Batches of the scenes `first_seed`, `first_seed + 1`, ... without end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, batch_size: int, first_seed: int):
        self.tokenizer, self.batch_size, self.first_seed = tokenizer, batch_size, first_seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        seed = self.first_seed
        while True:
            yield self.batch(range(seed, seed + self.batch_size))
            seed += self.batch_size

    def batch(self, seeds: range) -> Batch:
        drawn = [scenes.make_scene(seed) for seed in seeds]
        chosen = [example for scene, seed in zip(drawn, seeds, strict=True) for example in choose(scene, seed)]
        return Batch(
            torch.from_numpy(np.stack([pixels(scene) for scene in drawn])),
            padded([self.encode(example.prompt) for example in chosen]),
            padded([self.encode(example.target) for example in chosen]),
            dense_labels(drawn),
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(f"<s>{text}</s>", add_special_tokens=False)


def choose(scene: scenes.Scene, seed: int) -> list[Example]:
    """Choose different tasks for one image, preferring those with locations."""
    rng = random.Random(seed)
    remaining = scenes.make_examples(scene, seed)
    chosen = []
    while len(chosen) < TASKS_PER_IMAGE:
        names = list(remaining)
        weights = [TASK_WEIGHTS[name] for name in names]
        chosen.append(remaining.pop(rng.choices(names, weights)[0]))
    return chosen


def pixels(scene: scenes.Scene) -> np.ndarray:
    """Return the image as [3, 192, 192], normalized like the processor does."""
    image = np.asarray(scene.draw(IMAGE_SIZE), np.float32) / 255
    return np.ascontiguousarray(((image - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1))


def padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def dense_labels(drawn: list[scenes.Scene]) -> dict[str, Tensor]:
    """Return the contents of each grid cell. An object belongs to the cell that holds its center."""
    size = (len(drawn), GRID, GRID)
    labels = {name: torch.full(size, NOTHING) for name in ("kind", "color", "text")}
    labels |= {name: torch.zeros(*size, 4) for name in ("shape_box", "word_box")}
    for index, scene in enumerate(drawn):
        for shape in scene.shapes:
            cell = (index, *grid_cell(shape.box))
            labels["kind"][cell] = KINDS.index(shape.kind)
            labels["color"][cell] = list(COLORS).index(shape.color)
            labels["shape_box"][cell] = from_cell(shape.box)
        for word in scene.words:
            cell = (index, *grid_cell(word.box))
            labels["text"][cell] = WORDS.index(word.text)
            labels["word_box"][cell] = from_cell(word.box)
    return labels


def grid_cell(box: Box) -> tuple[int, int]:
    x, y = center(box)
    return int(y * GRID), int(x * GRID)


def from_cell(box: Box) -> Tensor:
    row, column = grid_cell(box)
    x, y = (column + 0.5) / GRID, (row + 0.5) / GRID
    return torch.tensor([box[0] - x, box[1] - y, box[2] - x, box[3] - y])
