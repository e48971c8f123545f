"""The exact answer to each of Florence-2's fifteen tasks about a scene."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from florence2.tasks import TASKS
from tools.toy_model.shapes import Box, Shape, place

if TYPE_CHECKING:
    from tools.toy_model.scenes import Scene


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
