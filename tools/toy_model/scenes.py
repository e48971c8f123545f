"""Draw scenes of colored shapes and words, with the exact answer to each of Florence-2's fifteen tasks.

`train.py` learns from these scenes; `evaluate.py` and the tests measure on others. A scene is described in fractions of
the image's side, so it can be drawn at any size, and a seed gives the same scene on every machine.

    python -m tools.toy_model.scenes --seed 7 --size 768 --out scene.png --truth scene.json
"""

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from tools.toy_model.answers import every_target, make_examples, repeats_trigram
from tools.toy_model.drawing import draw_background, draw_shape, draw_word, measure
from tools.toy_model.shapes import (
    COLORS,
    KINDS,
    WORDS,
    Background,
    Box,
    Color,
    Shape,
    Word,
    center,
    near_threshold,
    overlaps,
    place,
)

BACKGROUNDS: tuple[Color, ...] = (
    (235, 235, 235),
    (200, 215, 230),
    (225, 215, 195),
    (180, 190, 180),
    (120, 125, 130),
    (250, 245, 235),
    (235, 205, 205),
    (170, 160, 190),
    (70, 80, 95),
)
PATTERNS = ("plain", "gradient", "stripes", "speckle")

# Evaluation, tests and the bundled image use smaller seeds.
FIRST_TRAINING_SEED = 1_000_000
# A model cannot learn an order or a place that two things nearly share, so such scenes are drawn again.
ORDER_GAP = 0.06
WORD_ROW_GAP = 0.18
EDGE = 0.015


@dataclass(frozen=True)
class Scene:
    """Shapes from left to right, words from top to bottom, on a background."""

    background: Background
    shapes: tuple[Shape, ...]
    words: tuple[Word, ...]

    def draw(self, size: int) -> Image.Image:
        """Return the RGB image, `size` pixels a side, drawn twice as large and reduced for smooth edges."""
        canvas = draw_background(self.background, 2 * size)
        for shape in self.shapes:
            draw_shape(canvas, shape)
        for word in self.words:
            draw_word(canvas, word)
        return canvas.resize((size, size), Image.Resampling.BICUBIC)


def make_scene(seed: int) -> Scene:
    """Return this seed's scene, drawn again until every answer is clear and survives default decoding."""
    rng = random.Random(seed)
    while True:
        scene = compose(rng)
        if scene.shapes and not any(repeats_trigram(target) for target in every_target(scene)):
            return scene


def compose(rng: random.Random) -> Scene:
    background = random_background(rng)
    shape_count, word_count = rng.choice((1, 2, 2, 3, 3)), rng.choice((0, 1, 1, 2))
    shapes: list[Shape] = []
    words: list[Word] = []
    for _ in range(shape_count):
        shapes += place_shape(rng, background, shapes, shape_count)
    for _ in range(word_count):
        words += place_word(rng, background, shapes, words)
    shapes.sort(key=lambda shape: center(shape.box)[0])
    words.sort(key=lambda word: center(word.box)[1])
    return Scene(background, tuple(shapes), tuple(words))


def random_background(rng: random.Random) -> Background:
    first = jitter(rng, rng.choice(BACKGROUNDS), 15)
    return Background(rng.choice(PATTERNS), first, jitter(rng, first, 22), rng.randrange(2**31))


def place_shape(rng: random.Random, background: Background, shapes: list[Shape], count: int) -> list[Shape]:
    """Return a list with one shape that fits next to the others, or an empty list if there is no room."""
    smallest, largest = {1: (0.24, 0.56), 2: (0.22, 0.46), 3: (0.2, 0.4)}[count]
    free_colors = [name for name in COLORS if name not in {shape.color for shape in shapes}]
    for _ in range(30):
        box = random_box(rng, smallest, largest)
        color = rng.choice(free_colors)
        if near_threshold(box) or any(overlaps(box, shape.box) for shape in shapes):
            continue
        if contrast(COLORS[color], background) < 110:
            continue
        if any(too_close(box, shape.box) for shape in shapes):
            continue
        return [Shape(rng.choice(KINDS), color, box, jitter(rng, COLORS[color], 12), rng.uniform(0, 0.22))]
    return []


def too_close(box: Box, other: Box) -> bool:
    """Return whether neither the order from left to right nor the place's name tells the two apart."""
    return abs(center(box)[0] - center(other)[0]) < ORDER_GAP or place(box) == place(other)


def random_box(rng: random.Random, smallest: float, largest: float) -> Box:
    width = rng.uniform(smallest, largest)
    height = width * rng.uniform(0.8, 1.25)
    left = rng.uniform(EDGE, 1 - EDGE - width)
    top = rng.uniform(EDGE, 1 - EDGE - height)
    return (left, top, left + width, top + height)


def place_word(rng: random.Random, background: Background, shapes: list[Shape], words: list[Word]) -> list[Word]:
    """Return a list with one word that fits next to everything else, or an empty list if there is no room."""
    dark = sum(background.first) > 330
    ink = jitter(rng, (20, 20, 20) if dark else (240, 240, 240), 15)
    free_words = [text for text in WORDS if text not in {word.text for word in words}]
    for _ in range(20):
        text, font_size = rng.choice(free_words), rng.uniform(0.09, 0.14)
        width, height = measure(text, font_size)
        if width > 1 - 2 * EDGE:
            continue
        left, top = rng.uniform(EDGE, 1 - EDGE - width), rng.uniform(EDGE, 1 - EDGE - height)
        box = (left, top, left + width, top + height)
        if any(overlaps(box, other.box) for other in (*shapes, *words)):
            continue
        if any(abs(center(box)[1] - center(word.box)[1]) < WORD_ROW_GAP for word in words):
            continue
        return [Word(text, box, font_size, ink)]
    return []


def jitter(rng: random.Random, color: Color, amount: int) -> Color:
    return tuple(max(0, min(255, channel + rng.randint(-amount, amount))) for channel in color)


def contrast(color: Color, background: Background) -> int:
    """Return the summed channel differences to the nearer of the background's two colors."""
    return min(
        sum(abs(one - other) for one, other in zip(color, behind, strict=True))
        for behind in (background.first, background.second)
    )


def truth(scene: Scene, seed: int) -> dict:
    """Return the scene, its inputs and its answers as data for JSON."""
    examples = make_examples(scene, seed)
    questions = {task: {"input": example.input, "answer": example.target} for task, example in examples.items()}
    return {"seed": seed, "scene": asdict(scene), "tasks": questions}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw one scene and print its inputs and answers.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--out", type=Path, help="write the image here")
    parser.add_argument("--truth", type=Path, help="write the scene and its answers here as JSON")
    options = parser.parse_args()
    scene = make_scene(options.seed)
    for example in make_examples(scene, options.seed).values():
        print(f"{example.processor_text}\n    {example.target}")
    if options.out:
        scene.draw(options.size).save(options.out)
    if options.truth:
        options.truth.write_text(json.dumps(truth(scene, options.seed), indent=1) + "\n")


if __name__ == "__main__":
    main()
