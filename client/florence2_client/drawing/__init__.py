"""Draw an answer on its image: outlines, translucent areas, labels, and longer text as a strip below.

`labels` places the labels, `fonts` finds the glyphs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

from florence2.answers import Answer, TextAnswer
from florence2_client.drawing.fonts import TextFont
from florence2_client.drawing.labels import (
    Color,
    Label,
    contrasting,
    draw_labels,
    font_size_for,
    wrapped,
)
from florence2_client.images import ImageLike, decoded_image
from florence2_client.objects import Found, Point, Shape, found_in, plain_text

PALETTE: tuple[Color, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 210, 0), (30, 110, 240), (245, 130, 48), (150, 50, 200), (30, 200, 230),
    (240, 50, 230), (160, 220, 40), (255, 130, 170), (0, 140, 130), (165, 95, 40), (130, 130, 255), (160, 30, 60),
)  # fmt: skip
READABLE_SIDE = 480  # smaller images are enlarged so that text on them is readable
FILL_OPACITY = 90  # of 255
LONGEST_CHIP = 40  # characters; longer text about a region goes below the image


def draw(image: ImageLike, answer: Answer) -> Image.Image:
    """Return a new RGB image with the answer drawn on it, upright like the answer's coordinates.

    Images with a longer side below 480 pixels are enlarged by a whole factor; text answers make the image taller. Raise
    InvalidImage if the image cannot be read.

    >>> answer = client.ocr_with_region("scene.png").answer
    >>> draw("scene.png", answer).size
    (768, 768)
    """
    canvas = decoded_image(image)
    objects = found_in(answer, canvas.size)
    text = ""
    if isinstance(answer, TextAnswer):
        text = plain_text(answer.text)
        if objects and answer.text.endswith(">") and (len(objects) > 1 or len(text) <= LONGEST_CHIP):
            text = ""  # the labels say it all
    factor = math.ceil(READABLE_SIDE / max(canvas.size))
    canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
    _draw_objects(canvas, objects, factor, labeled=not text or len(objects) > 1)
    if not text:
        return canvas
    font = TextFont(font_size_for(canvas.size))
    margin = font.line_height // 2
    lines = wrapped(text, font, canvas.width - 2 * margin)
    result = Image.new("RGB", (canvas.width, canvas.height + 2 * margin + font.line_height * len(lines)), "white")
    result.paste(canvas)
    for index, line in enumerate(lines):
        font.draw(result, (margin, canvas.height + margin + index * font.line_height), line, "black")
    return result


def label_colors(labels: Iterable[str]) -> dict[str, Color]:
    """Choose a color per label: the same in every image, unless another label there already has it."""
    colors: dict[str, Color] = {}
    for label in sorted(set(labels)):
        first = zlib.crc32(label.encode("utf-8", "replace")) % len(PALETTE)
        choices = PALETTE[first:] + PALETTE[:first]
        free = (color for color in choices if color not in colors.values())
        colors[label] = next(free, choices[0])
    return colors


def _draw_objects(canvas: Image.Image, objects: Sequence[Found], factor: int, labeled: bool) -> None:
    """Draw large objects first, so that small ones stay visible, and all labels on top."""
    keys = [found.label or f"#{index}" for index, found in enumerate(objects)]  # unlabeled ones differ too
    colors = label_colors(keys)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (found.box for found in objects)]
    order = sorted(range(len(objects)), key=lambda index: -areas[index])
    drawn = [(objects[index], colors[keys[index]], _outlines(objects[index], factor)) for index in order]
    for found, color, outlines in drawn:
        if found.shape is Shape.POLYGON:
            mask = Image.new("L", canvas.size)
            brush = ImageDraw.Draw(mask)
            for outline in outlines:
                if len(outline) > 2:
                    brush.polygon(outline, fill=FILL_OPACITY)
            canvas.paste(color, mask=mask)
    for _, color, outlines in drawn:
        for outline in outlines:
            _draw_line(canvas, outline, color)
    labels = []
    for found, color, _ in reversed(drawn):
        confidence = "" if found.confidence is None else f"{found.confidence:.0%}"
        if labeled and (caption := " ".join([*found.label.split(), confidence]).strip()):
            x1, y1, x2, y2 = found.box
            labels.append(Label(caption, color, (x1 * factor, y1 * factor, x2 * factor, y2 * factor)))
    draw_labels(canvas, labels)


def _outlines(found: Found, factor: int) -> list[list[Point]]:
    x1, y1, x2, y2 = found.box
    polygons = found.polygons or [[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]]
    return [[(x * factor, y * factor) for x, y in polygon] for polygon in polygons]


def _draw_line(canvas: Image.Image, outline: list[Point], color: Color) -> None:
    """Draw a closed line with a thin rim of contrasting brightness: one of the two is visible on any background."""
    brush = ImageDraw.Draw(canvas)
    width = max(3, font_size_for(canvas.size) // 5)
    margin = width // 2  # from the edge of the image, so that the line is not cut off
    right, bottom = canvas.width - 1 - margin, canvas.height - 1 - margin
    inside = [(max(margin, min(x, right)), max(margin, min(y, bottom))) for x, y in outline]
    closed = inside + inside[:2]  # the second point again, for a clean joint at the first
    if len(outline) > 1:
        brush.line(closed, fill=contrasting(color), width=width + 2 * max(1, width // 4), joint="curve")
        brush.line(closed, fill=color, width=width, joint="curve")
