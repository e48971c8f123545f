"""Small text and small objects in a 4k image: recall with and without tiles, and the time of both.

    python -m bench.tiles [REPOSITORY] [--scenes 1] [--tile 128] [--overlap 0.4] [--image docs/images/tiles.png]

The scenes are words with 8 pixels high capitals and shapes of 24 to 44 pixels, drawn like those of the toy model, which
the bundled checkpoint was trained on. It sees 192 x 192 pixels and knows words as high as a tenth of the image, so its
tiles have to be small; Florence-2 sees 768 x 768 pixels and needs a sixteenth as many.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from bench.checkpoints import BUNDLED, export
from bench.harness import embedded_server
from florence2_client import Client, Found, Options, Tiles
from florence2_client.tiling import tile_boxes
from tools.toy_model.drawing import font
from tools.toy_model.shapes import COLORS, KINDS, UNIT_OUTLINES, WORDS

SIZE = (3840, 2160)
CELL = 120  # pixels; each holds a word, a shape, both or nothing
FONT_SIZE = 11  # whose capitals are 8 pixels high
SHAPES = (24, 44)
ONE_BY_ONE = 60  # single requests that are timed; the time of all tiles is calculated from them
GREEDY = Options(num_beams=1, timeout=3600)

Truth = list[tuple[str, tuple[float, float, float, float]]]


@dataclass
class Score:
    """Counts over all scenes."""

    expected: int = 0
    found: int = 0
    right: int = 0
    seconds: list[float] = field(default_factory=list)

    def add(self, truth: Truth, objects: Sequence[Found], seconds: float) -> None:
        """Count each expected object that is there: the same label, and its center in the found box and vice versa."""
        left = list(objects)
        self.expected += len(truth)
        self.found += len(left)
        self.seconds.append(seconds)
        for label, box in truth:
            match = next((one for one in left if one.label == label and centers_agree(one.box, box)), None)
            if match:
                left.remove(match)
                self.right += 1

    def row(self, name: str) -> str:
        recall, precision = self.right / self.expected, self.right / max(1, self.found)
        return f"| {name} | {recall:.2f} | {precision:.2f} | {sum(self.seconds) / len(self.seconds):.1f} |"


def centers_agree(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = ((one, other), (other, one))
    return all(a[0] <= (b[0] + b[2]) / 2 <= a[2] and a[1] <= (b[1] + b[3]) / 2 <= a[3] for a, b in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repository", type=Path, nargs="?", help="of the bundled checkpoint; exported if not given")
    parser.add_argument("--scenes", type=int, default=1)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--overlap", type=float, default=0.4)
    parser.add_argument("--image", type=Path, help="draw the tiles and the answers in a part of the first scene")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = options.repository or export(BUNDLED, Path(folder), "auto")
        with embedded_server(repository, print) as server, Client(server.grpc_url, retry_for=600) as client:
            measure(client, Tiles(options.tile, options.overlap), options.scenes, options.image)
    return 0


def measure(client: Client, tiles: Tiles, count: int, target: Path | None) -> None:
    """Print the table, and draw the first scene with its tiles."""
    boxes = tile_boxes(SIZE, tiles)
    print(f"{SIZE[0]} x {SIZE[1]} pixels, {len(boxes)} tiles of {tiles.size} pixels, {count} scenes\n")
    print("| | recall | precision | seconds |\n|---|---|---|---|")
    drawn: list[Found] = []
    for task, what in (("ocr_with_region", "text"), ("od", "objects")):
        whole, tiled, single = Score(), Score(), []
        for seed in range(count):
            image, words, shapes = draw_scene(seed)
            truth = words if what == "text" else shapes
            for score, given in ((whole, None), (tiled, tiles)):
                start = time.perf_counter()
                result = client.run(image, task, tiles=given, **GREEDY)
                score.add(truth, result.objects, time.perf_counter() - start)
            some = random.Random(seed).sample(boxes, min(ONE_BY_ONE, len(boxes)))
            start = time.perf_counter()
            for box in some:
                client.run(image.crop(box), task, **GREEDY)
            single.append((time.perf_counter() - start) / len(some) * (len(boxes) + 1))
            if seed == 0:
                drawn += result.objects
        print(whole.row(f"{what}, whole image"))
        print(tiled.row(f"{what}, tiles in flight"))
        print(f"| {what}, tiles one after the other | | | {sum(single) / count:.1f} |")
    if target:
        draw_tiles(draw_scene(0)[0], boxes, drawn, target)


def draw_scene(seed: int) -> tuple[Image.Image, Truth, Truth]:
    """Return an image with its words and shapes. A cell has a word, a shape, both one below the other, or nothing."""
    rng = random.Random(seed)
    image = Image.new("RGB", SIZE, (235, 235, 230))
    pen, face = ImageDraw.Draw(image), font(FONT_SIZE)
    words: Truth = []
    shapes: Truth = []
    for top in range(0, SIZE[1] - CELL + 1, CELL):
        for left in range(0, SIZE[0] - CELL + 1, CELL):
            if rng.random() < 0.6:
                text = rng.choice(WORDS)
                x1, y1, x2, y2 = face.getbbox(text)
                x, y = rng.randint(left + 4, left + CELL - 4 - int(x2)), rng.randint(top + 4, top + CELL // 2 - 20)
                pen.text((x, y), text, font=face, fill=(20, 20, 20))
                words.append((text, (x + x1, y + y1, x + x2, y + y2)))
            if rng.random() < 0.6:
                side, kind = rng.randint(*SHAPES), rng.choice(KINDS)
                x, y = (
                    rng.randint(left + 4, left + CELL - 4 - side),
                    rng.randint(top + CELL // 2, top + CELL - 4 - side),
                )
                draw_shape(pen, kind, rng.choice([color for color in COLORS if color != "yellow"]), x, y, side)
                shapes.append((kind, (x, y, x + side, y + side)))
    return image, words, shapes


def draw_shape(pen: ImageDraw.ImageDraw, kind: str, color: str, x: int, y: int, side: int) -> None:
    if kind == "circle":
        pen.ellipse((x, y, x + side, y + side), fill=COLORS[color])
    else:
        pen.polygon([(x + a * side, y + b * side) for a, b in UNIT_OUTLINES[kind]], fill=COLORS[color])


def draw_tiles(
    image: Image.Image, boxes: Sequence[tuple[int, int, int, int]], objects: Sequence[Found], target: Path
) -> None:
    """Write the upper left corner of the image at three times its size, with its tiles and what was found."""
    part, scale = (0, 0, 400, 260), 3
    drawn = image.crop(part).resize((part[2] * scale, part[3] * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    for found in objects:
        pen.rectangle([value * scale for value in found.box], outline=(200, 30, 30), width=3)
    for number, box in enumerate(boxes):
        if box[2] <= part[2] and box[3] <= part[3]:
            inset = 3 * (number % 3)
            edges = (box[0] * scale + inset, box[1] * scale + inset, box[2] * scale - inset, box[3] * scale - inset)
            pen.rectangle(edges, outline=[(30, 90, 200), (20, 150, 120), (150, 90, 190)][number % 3], width=2)
    drawn.save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
