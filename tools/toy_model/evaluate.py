"""Measure a checkpoint on scenes it was not trained on, all fifteen tasks, with plain transformers.

    python -m tools.toy_model.evaluate [CHECKPOINT] [--scenes 300] [--beams 1 3]

Print the table of demo/README.md; `tests/unit/tools/test_toy_model.py` runs it on a few scenes. Decoding uses the
checkpoint's own defaults except for the number of beams.
"""

import argparse
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from tools.toy_model import architecture, scenes
from tools.toy_model.shapes import Box, Point

CHECKPOINT = architecture.BUNDLED
DRAWN_SIZE = 384
MASK_SIZE = 250
FOUND_FROM = 0.5
LOCATION = re.compile(r"<loc_(\d+)>")
LABELED = re.compile(r"([^<]*)((?:<loc_\d+>)+)")

Found = tuple[str, tuple[float, ...]]


@dataclass
class Scores:
    """Sums over the answers to one task. Each task's scorer fills what its measures read."""

    answers: int = 0
    exact: int = 0
    matched: int = 0
    predicted: int = 0
    expected: int = 0
    overlaps: list[float] = field(default_factory=list)

    @property
    def f1(self) -> float:
        return 2 * self.matched / max(1, self.predicted + self.expected)

    @property
    def mean_overlap(self) -> float:
        return sum(self.overlaps) / max(1, len(self.overlaps))

    @property
    def exact_share(self) -> float:
        return self.exact / max(1, self.answers)

    @property
    def found_share(self) -> float:
        return sum(overlap >= FOUND_FROM for overlap in self.overlaps) / max(1, len(self.overlaps))


# --- reading answers -------------------------------------------------------------------------------------------------


def labeled(answer: str, numbers: int) -> list[Found]:
    """Return every run of `numbers` locations with the text before it: boxes (4) or quads (8)."""
    found = []
    for label, run in LABELED.findall(answer):
        values = [(int(value) + 0.5) / 1000 for value in LOCATION.findall(run)]
        for start in range(0, len(values) - numbers + 1, numbers):
            found.append((label.strip(), tuple(values[start : start + numbers])))
    return found


def outline(answer: str) -> list[Point]:
    values = [(int(value) + 0.5) / 1000 for value in LOCATION.findall(answer)]
    return list(zip(values[::2], values[1::2], strict=False))


def around(numbers: tuple[float, ...]) -> Box:
    """Return the bounding box of a box or a quad."""
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def box_overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the intersection over union of two boxes or quads."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = around(one), around(other)
    width, height = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
    shared = max(0.0, width) * max(0.0, height)
    both = (right - left) * (bottom - top) + (right2 - left2) * (bottom2 - top2) - shared
    return shared / both if both > 0 else 0.0


def mask_overlap(one: list[Point], other: list[Point]) -> float:
    """Return the intersection over union of two filled outlines."""
    first, second = mask(one), mask(other)
    return float((first & second).sum() / max(1, (first | second).sum()))


def mask(points: list[Point]) -> np.ndarray:
    """Return the outline's mask [MASK_SIZE, MASK_SIZE], true inside."""
    canvas = Image.new("L", (MASK_SIZE, MASK_SIZE))
    if len(points) > 2:
        ImageDraw.Draw(canvas).polygon([(x * MASK_SIZE, y * MASK_SIZE) for x, y in points], fill=1)
    return np.asarray(canvas, bool)


# --- scoring ---------------------------------------------------------------------------------------------------------


def score_text(scores: Scores, answer: str, target: str) -> None:
    scores.exact += answer == target


def score_region_text(scores: Scores, answer: str, target: str) -> None:
    """Compare only the words; the region after them repeats the input."""
    scores.exact += LOCATION.sub("", answer) == LOCATION.sub("", target)


def score_objects(scores: Scores, answer: str, target: str, numbers: int = 4) -> None:
    """Pair every expected object with the best unpaired one of the same label."""
    predicted, expected = labeled(answer, numbers), labeled(target, numbers)
    scores.predicted += len(predicted)
    scores.expected += len(expected)
    for label, box in expected:
        rivals = [other for other in predicted if other[0] == label]
        best = max(rivals, key=lambda other: box_overlap(other[1], box), default=None)
        overlap = box_overlap(best[1], box) if best else 0.0
        if overlap >= FOUND_FROM:
            predicted.remove(best)
            scores.matched += 1
            scores.overlaps.append(overlap)


def score_quads(scores: Scores, answer: str, target: str) -> None:
    score_objects(scores, answer, target, numbers=8)


def score_phrases(scores: Scores, answer: str, target: str) -> None:
    """Add the overlap of every requested phrase, 0 for one that is missing from the answer."""
    predicted = dict(labeled(answer, 4))
    expected = labeled(target, 4)
    scores.overlaps += [box_overlap(predicted.get(phrase, (0, 0, 0, 0)), box) for phrase, box in expected]


def score_outline(scores: Scores, answer: str, target: str) -> None:
    scores.overlaps.append(mask_overlap(outline(answer), outline(target)))


Scorer = Callable[[Scores, str, str], None]
Measure = tuple[str, Callable[[Scores], float]]
EXACT: Measure = ("exact", lambda scores: scores.exact_share)
F1: Measure = ("F1 at IoU 0.5", lambda scores: scores.f1)
MATCHED_OVERLAP: Measure = ("mean IoU of the matches", lambda scores: scores.mean_overlap)
OVERLAP: Measure = ("mean IoU", lambda scores: scores.mean_overlap)
FOUND: Measure = ("share with IoU of 0.5 or more", lambda scores: scores.found_share)
MASK: Measure = ("mean IoU of the masks", lambda scores: scores.mean_overlap)

MEASURES: dict[str, tuple[Scorer, tuple[Measure, ...]]] = {
    "<CAPTION>": (score_text, (EXACT,)),
    "<DETAILED_CAPTION>": (score_text, (EXACT,)),
    "<MORE_DETAILED_CAPTION>": (score_text, (EXACT,)),
    "<OCR>": (score_text, (EXACT,)),
    "<OCR_WITH_REGION>": (score_quads, (F1, MATCHED_OVERLAP)),
    "<OD>": (score_objects, (F1, MATCHED_OVERLAP)),
    "<DENSE_REGION_CAPTION>": (score_objects, (F1, MATCHED_OVERLAP)),
    "<REGION_PROPOSAL>": (score_objects, (F1, MATCHED_OVERLAP)),
    "<CAPTION_TO_PHRASE_GROUNDING>": (score_phrases, (FOUND, OVERLAP)),
    "<REFERRING_EXPRESSION_SEGMENTATION>": (score_outline, (MASK,)),
    "<REGION_TO_SEGMENTATION>": (score_outline, (MASK,)),
    "<OPEN_VOCABULARY_DETECTION>": (score_objects, (F1, MATCHED_OVERLAP)),
    "<REGION_TO_CATEGORY>": (score_region_text, (EXACT,)),
    "<REGION_TO_DESCRIPTION>": (score_region_text, (EXACT,)),
    "<REGION_TO_OCR>": (score_region_text, (EXACT,)),
}


# --- measuring -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def ask(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    images: list[Image.Image],
    texts: list[str],
    beams: int,
) -> list[str]:
    """Return the answers as raw text with location tokens, without start and end tokens."""
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    ids = model.generate(**inputs, num_beams=beams, early_stopping=beams > 1, max_new_tokens=150)
    return [re.sub(r"<s>|</s>|<pad>", "", text) for text in processor.batch_decode(ids, skip_special_tokens=False)]


def evaluate(
    checkpoint: Path, seeds: Iterable[int], beams: int = 1, tasks: Iterable[str] = tuple(MEASURES), batch_size: int = 50
) -> dict[str, Scores]:
    """Return each task's scores over the scenes of these seeds."""
    model, processor = architecture.load(checkpoint)
    model.eval()
    scores: dict[str, Scores] = defaultdict(Scores)
    for few in in_groups(list(seeds), batch_size):
        images = {seed: scenes.make_scene(seed).draw(DRAWN_SIZE) for seed in few}
        questions = {seed: scenes.make_examples(scenes.make_scene(seed), seed) for seed in few}
        for task in tasks:
            asked = [(images[seed], questions[seed][task]) for seed in few if task in questions[seed]]
            texts = [example.processor_text for _, example in asked]
            answers = ask(model, processor, [image for image, _ in asked], texts, beams) if asked else []
            for answer, (_, example) in zip(answers, asked, strict=True):
                scores[task].answers += 1
                MEASURES[task][0](scores[task], answer, example.target)
    return scores


def in_groups(seeds: list[int], size: int) -> list[list[int]]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def table(results: dict[str, dict[str, Scores]]) -> str:
    """Return a Markdown table with a line per measure and a column per result."""
    first = next(iter(results.values()))
    lines = [f"| task | answers | metric | {' | '.join(results)} |", "|---|---|---|" + "---|" * len(results)]
    for task, (_, measures) in MEASURES.items():
        for name, value in measures:
            figures = " | ".join(f"{value(scores[task]):.3f}" for scores in results.values())
            lines.append(f"| `{task}` | {first[task].answers} | {name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a checkpoint on unseen scenes, all fifteen tasks.")
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=300, help="how many, from seed 0 on")
    parser.add_argument("--beams", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1, help="more than one only pays on an idle machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for beams in options.beams:
        started = time.monotonic()
        name = "greedy" if beams == 1 else f"{beams} beams"
        results[name] = evaluate(options.checkpoint, range(options.scenes), beams)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
