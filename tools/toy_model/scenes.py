"""Draw scenes of colored shapes and words, with the exact answer to each of Florence-2's fifteen tasks.

`train.py` learns from these scenes; `evaluate.py` and the tests measure on others. A scene is described in fractions of
the image's side, so it can be drawn at any size, and a seed gives the same scene on every machine.

    python -m tools.toy_model.scenes --seed 7 --size 768 --out scene.png --truth scene.json
"""

import argparse
import json
import math
import random
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from florence2.tasks import TASKS

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Color = tuple[int, int, int]

KINDS = ("circle", "square", "triangle", "star", "cross")
COLORS: dict[str, Color] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 180),
    "black": (25, 25, 25),
}
WORDS = tuple(
    "OPEN EXIT SALE STOP CAFE TAXI HOTEL BANK FOOD PARK PUSH PULL LEFT RIGHT NORTH SOUTH COFFEE BREAD "
    "MILK MUSIC RADIO TRAIN BIKE STREET MARKET PIZZA JUICE CHAIR CLOCK RIVER OCEAN STORM WINTER BRIDGE "
    "GARDEN CASTLE MUSEUM HELLO WORLD TRITON".split()
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
# A model cannot learn an answer that depends on a threshold, so scenes near one are drawn again.
LARGE_FROM, SMALL_BELOW = 0.37, 0.32
THIRDS = (0.36, 0.64)
THIRD_MARGIN = 0.025
ORDER_GAP = 0.06
WORD_ROW_GAP = 0.18
EDGE = 0.015
MEASURE_SIZE = 960


@dataclass(frozen=True)
class Shape:
    """One colored shape; `box` and `outline` are fractions of the image's side."""

    kind: str
    color: str
    box: Box
    fill: Color
    shade: float

    @property
    def outline(self) -> tuple[Point, ...]:
        left, top, right, bottom = self.box
        unit = UNIT_OUTLINES[self.kind]
        return tuple((left + x * (right - left), top + y * (bottom - top)) for x, y in unit)

    @property
    def size_word(self) -> str:
        return "large" if side(self.box) >= (LARGE_FROM + SMALL_BELOW) / 2 else "small"

    @property
    def short(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def long(self) -> str:
        return f"{self.size_word} {self.color} {self.kind}"


@dataclass(frozen=True)
class Word:
    """One printed word; `font_size` is a fraction of the image's side, like `box`."""

    text: str
    box: Box
    font_size: float
    ink: Color


@dataclass(frozen=True)
class Background:
    pattern: str
    first: Color
    second: Color
    seed: int


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


@dataclass(frozen=True)
class Example:
    """One request about a scene. `input` is the text that goes with the task, if any; `prompt` what the model reads."""

    task: str
    input: str | None
    target: str

    @property
    def prompt(self) -> str:
        return TASKS[self.task].prompt.replace("{input}", self.input or "")

    @property
    def processor_text(self) -> str:
        return self.task + (self.input or "")


# --- geometry --------------------------------------------------------------------------------------------------------


def unit_outlines() -> dict[str, tuple[Point, ...]]:
    """Return each kind's outline in a unit square, clockwise from the top. A circle is an octagon of the same area."""
    arm = 0.325
    octagon = 0.5 * math.sqrt(math.pi / (8 * math.sin(math.pi / 8) * math.cos(math.pi / 8)))
    return {
        "circle": ring([octagon] * 8, math.pi / 8),
        "square": ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
        "triangle": ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0)),
        "star": stretch(ring([0.5, 0.21] * 5, 0.0)),
        "cross": (
            (arm, 0.0), (1 - arm, 0.0), (1 - arm, arm), (1.0, arm), (1.0, 1 - arm), (1 - arm, 1 - arm),
            (1 - arm, 1.0), (arm, 1.0), (arm, 1 - arm), (0.0, 1 - arm), (0.0, arm), (arm, arm),
        ),
    }  # fmt: skip


def ring(radii: list[float], first_angle: float) -> tuple[Point, ...]:
    angles = [first_angle + 2 * math.pi * index / len(radii) for index in range(len(radii))]
    return tuple(
        (0.5 + radius * math.sin(angle), 0.5 - radius * math.cos(angle))
        for radius, angle in zip(radii, angles, strict=True)
    )


def stretch(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Scale an outline so that it touches all four sides of the unit square."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return tuple(((x - min(xs)) / width, (y - min(ys)) / height) for x, y in points)


UNIT_OUTLINES = unit_outlines()


def side(box: Box) -> float:
    """Return the side of the square that has the box's area."""
    return math.sqrt((box[2] - box[0]) * (box[3] - box[1]))


def center(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def overlaps(one: Box, other: Box, margin: float = 0.015) -> bool:
    apart_x = one[2] + margin < other[0] or other[2] + margin < one[0]
    apart_y = one[3] + margin < other[1] or other[3] + margin < one[1]
    return not (apart_x or apart_y)


def third(position: float, names: tuple[str, str, str]) -> str:
    return names[0] if position < THIRDS[0] else names[2] if position > THIRDS[1] else names[1]


def place(box: Box) -> str:
    """Return the box's place in the image: "top left", ..., "center", ..., "bottom right"."""
    x, y = center(box)
    name = f"{third(y, ('top', 'middle', 'bottom'))} {third(x, ('left', 'center', 'right'))}"
    return name.replace("middle center", "center")


def near_threshold(box: Box) -> bool:
    if SMALL_BELOW < side(box) < LARGE_FROM:
        return True
    return any(abs(position - edge) < THIRD_MARGIN for position in center(box) for edge in THIRDS)


# --- composing a scene -----------------------------------------------------------------------------------------------


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


# --- drawing ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


def measure(text: str, font_size: float) -> tuple[float, float]:
    left, top, right, bottom = font(round(font_size * MEASURE_SIZE)).getbbox(text)
    return (right - left) / MEASURE_SIZE, (bottom - top) / MEASURE_SIZE


def draw_background(background: Background, size: int) -> Image.Image:
    if background.pattern == "plain":
        return Image.new("RGB", (size, size), background.first)
    mix = background_mix(background, size)[..., None]
    first, second = (np.asarray(color, np.float32) for color in (background.first, background.second))
    small = Image.fromarray((first + mix * (second - first)).astype(np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def background_mix(background: Background, size: int) -> np.ndarray:
    """Return the share of the second color, in [0, 1]: [48, 48], or [12, 12] for coarse speckle."""
    if background.pattern == "speckle":
        return np.random.default_rng(background.seed).random((12, 12), dtype=np.float32)
    ramp = np.linspace(0, 1, 48, dtype=np.float32)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    along = (rows, columns, (rows + columns) / 2)[background.seed % 3]
    if background.pattern == "gradient":
        return along
    return 0.5 + 0.5 * np.sin(along * math.pi * (6 + background.seed % 7))


def draw_shape(canvas: Image.Image, shape: Shape) -> None:
    size = canvas.width
    left, top, right, bottom = (round(value * size) for value in shape.box)
    mask = Image.new("L", (right - left, bottom - top), 0)
    pen = ImageDraw.Draw(mask)
    if shape.kind == "circle":
        pen.ellipse((0, 0, right - left - 1, bottom - top - 1), fill=255)
    else:
        pen.polygon([(x * size - left, y * size - top) for x, y in shape.outline], fill=255)
    canvas.paste(shaded(shape, mask.size), (left, top), mask)


def shaded(shape: Shape, size: tuple[int, int]) -> Image.Image:
    """Return an image of the shape's color, lighter at the top than at the bottom by `shade`."""
    light = np.linspace(1 + shape.shade / 2, 1 - shape.shade / 2, size[1], dtype=np.float32)[:, None, None]
    column = np.clip(np.asarray(shape.fill, np.float32) * light, 0, 255).astype(np.uint8)
    return Image.fromarray(column).resize(size)


def draw_word(canvas: Image.Image, word: Word) -> None:
    size = canvas.width
    face = font(round(word.font_size * size))
    left, top, _, _ = face.getbbox(word.text)
    corner = (word.box[0] * size - left, word.box[1] * size - top)
    ImageDraw.Draw(canvas).text(corner, word.text, font=face, fill=word.ink)


# --- answers ---------------------------------------------------------------------------------------------------------


def locations(*values: float) -> str:
    """Return fractions of the side as location tokens: floor of 1000 times the value."""
    return "".join(f"<loc_{max(0, min(999, int(value * 1000)))}>" for value in values)


def quad(box: Box) -> str:
    left, top, right, bottom = box
    return locations(left, top, right, top, right, bottom, left, bottom)


def polygon(shape: Shape) -> str:
    return locations(*(value for point in shape.outline for value in point))


def listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(scene: Scene) -> str:
    shapes = listing([f"a {shape.short}" for shape in scene.shapes])
    return shapes + (f" with the text {printed(scene)}" if scene.words else "")


def printed(scene: Scene) -> str:
    return " and ".join(word.text for word in scene.words)


def placed(scene: Scene) -> list[str]:
    """Describe each shape with its place, each with another preposition, since no answer may repeat three tokens."""
    prepositions = ("in", "at", "near")
    return [
        f"a {shape.long} {preposition} the {place(shape.box)}"
        for shape, preposition in zip(scene.shapes, prepositions, strict=False)
    ]


def detailed_caption(scene: Scene) -> str:
    text = f", with the text {printed(scene)}" if scene.words else ""
    return f"The image shows {listing(placed(scene))}{text}."


def paragraph(scene: Scene) -> str:
    parts = placed(scene)
    count = "is 1 shape" if len(parts) == 1 else f"are {len(parts)} shapes"
    openings = ("It is",) if len(parts) == 1 else ("First is", "Next comes", "Last")
    sentences = [f"There {count} in the image."]
    sentences += [f"{opening} {part}." for opening, part in zip(openings, parts, strict=False)]
    sentences.append(f"The text reads {printed(scene)}." if scene.words else "There is no text.")
    return " ".join(sentences)


def whole_image_answers(scene: Scene) -> dict[str, str]:
    """Return the answers to the eight tasks without an input. An image without words has an empty text."""
    return {
        "<CAPTION>": caption(scene),
        "<DETAILED_CAPTION>": detailed_caption(scene),
        "<MORE_DETAILED_CAPTION>": paragraph(scene),
        "<OCR>": " ".join(word.text for word in scene.words),
        "<OCR_WITH_REGION>": "".join(word.text + quad(word.box) for word in scene.words),
        "<OD>": "".join(shape.kind + locations(*shape.box) for shape in scene.shapes),
        "<DENSE_REGION_CAPTION>": "".join(shape.long + locations(*shape.box) for shape in scene.shapes),
        "<REGION_PROPOSAL>": "".join(locations(*thing.box) for thing in (*scene.shapes, *scene.words)),
    }


def every_target(scene: Scene) -> list[str]:
    """Return the answers that could repeat three tokens: those about the whole image and every outline."""
    return [*whole_image_answers(scene).values(), *(polygon(shape) for shape in scene.shapes)]


def repeats_trigram(target: str) -> bool:
    """Return whether three tokens in a row occur twice, which default decoding forbids.

    Words, punctuation and locations are tokens; a rare word is split into letters, after a space of its own.
    """
    tokens = re.findall(r"<loc_\d+>| (?=First|Next|Last)|\w+|[^\w\s]", target)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(trigrams) != len(set(trigrams))


def make_examples(scene: Scene, seed: int) -> dict[str, Example]:
    """Return one example per task, whose input varies with the seed. Without words there is none for region OCR."""
    rng = random.Random(seed)
    examples = {task: Example(task, None, target) for task, target in whole_image_answers(scene).items()}
    asked = [
        grounding_example(scene, rng),
        referring_example(scene, rng),
        open_vocabulary_example(scene, rng),
        *region_examples(scene, rng),
    ]
    examples.update({example.task: example for example in asked})
    return examples


def grounding_example(scene: Scene, rng: random.Random) -> Example:
    """Ground the image's own caption, or sometimes fewer phrases in another order or with other articles."""
    things = [(f"a {shape.short}", shape.box) for shape in scene.shapes]
    words = [(word.text, word.box) for word in scene.words]
    style = rng.random()
    if style < 0.35:
        text, found = caption(scene), things + words
    elif style < 0.5:
        text = detailed_caption(scene)
        found = [(f"a {shape.long}", shape.box) for shape in scene.shapes] + words
    else:
        article = rng.choice(("a ", "the ", ""))
        found = [(article + shape.short, shape.box) for shape in scene.shapes]
        found = rng.sample(found, rng.randint(1, len(found)))
        text = listing([phrase for phrase, _ in found])
    target = "".join(phrase + locations(*box) for phrase, box in found)
    return Example("<CAPTION_TO_PHRASE_GROUNDING>", text, target)


def referring_example(scene: Scene, rng: random.Random) -> Example:
    shape = rng.choice(scene.shapes)
    names = [shape.short, shape.short, shape.long, f"{shape.color} shape"]
    if sum(other.kind == shape.kind for other in scene.shapes) == 1:
        names.append(shape.kind)
    text = rng.choice(("the ", "the ", "a ", "")) + rng.choice(names)
    return Example("<REFERRING_EXPRESSION_SEGMENTATION>", text, polygon(shape))


def open_vocabulary_example(scene: Scene, rng: random.Random) -> Example:
    """Look for all shapes of a kind, a colored shape, or a printed word; the answer repeats the input."""
    if scene.words and rng.random() < 0.15:
        word = rng.choice(scene.words)
        return Example("<OPEN_VOCABULARY_DETECTION>", word.text, word.text + locations(*word.box))
    shape = rng.choice(scene.shapes)
    name = rng.choice((shape.kind, shape.short, shape.short, f"{shape.color} shape"))
    found = [other for other in scene.shapes if name in (other.kind, other.short, f"{other.color} shape")]
    asked = rng.choice(("", "", "", "a ", "the ")) + name
    target = asked + "".join(locations(*other.box) for other in found)
    return Example("<OPEN_VOCABULARY_DETECTION>", asked, target)


def region_examples(scene: Scene, rng: random.Random) -> list[Example]:
    """Return examples about one region. Stock Florence-2 repeats the region after the answer, so these do too."""
    examples = []
    shape = rng.choice(scene.shapes)
    examples.append(Example("<REGION_TO_SEGMENTATION>", region(shape.box, rng), polygon(shape)))
    for task, attribute in (("<REGION_TO_CATEGORY>", "kind"), ("<REGION_TO_DESCRIPTION>", "long")):
        shape = rng.choice(scene.shapes)
        asked = region(shape.box, rng)
        examples.append(Example(task, asked, getattr(shape, attribute) + asked))
    if scene.words:
        word = rng.choice(scene.words)
        asked = region(word.box, rng)
        examples.append(Example("<REGION_TO_OCR>", asked, word.text + asked))
    return examples


def region(box: Box, rng: random.Random) -> str:
    """Return the box as a client might send it: exact half of the time, otherwise slightly off."""
    amount = rng.choice((0.0, 0.012))
    return locations(*(value + rng.uniform(-amount, amount) for value in box))


# --- command line ----------------------------------------------------------------------------------------------------


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
