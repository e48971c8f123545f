"""Draws an answer on its picture: outlines, translucent areas, labels, and longer text as a strip below.

`draw` is used by the library and the command line. Labels and their places are in `labels`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

from florence2.answers import Answer, TextAnswer
from florence2_client.drawing.fonts import Lettering
from florence2_client.drawing.labels import (
    Colour,
    Label,
    contrasting,
    draw_labels,
    font_size_for,
    wrapped,
)
from florence2_client.images import ImageLike, decoded_image
from florence2_client.objects import REGION_IN_TEXT, Box, Found, Point, Shape, found_in, plain_text

PALETTE: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 210, 0), (30, 110, 240), (245, 130, 48), (150, 50, 200), (30, 200, 230),
    (240, 50, 230), (160, 220, 40), (255, 130, 170), (0, 140, 130), (165, 95, 40), (130, 130, 255), (160, 30, 60),
)  # fmt: skip
READABLE_SIDE = 480  # smaller pictures are enlarged so that text on them can be read
FILL_OPACITY = 90  # of 255
LONGEST_CHIP = 40  # characters; a region's text beyond that goes below the picture


def draw(image: ImageLike, answer: Answer) -> Image.Image:
    """A new RGB picture with the answer on it, upright as the answer's coordinates are.

    Pictures with a longer side below 480 pixels come out enlarged by a whole factor; text answers make the picture
    taller. Raises InvalidImage if the picture cannot be read.

    >>> answer = client.ocr_with_region("scene.png").answer
    >>> draw("scene.png", answer).size
    (768, 768)
    """
    canvas = decoded_image(image)
    objects, below = found_in(answer, canvas.size), _text_below(answer)
    factor = math.ceil(READABLE_SIDE / max(canvas.size))
    canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
    _draw_objects(canvas, objects, factor, labelled=not below)
    return _with_strip(canvas, below) if below else canvas


def _text_below(answer: Answer) -> str:
    """The text to write below the picture: of an answer in words, unless it is short and about a region."""
    if not isinstance(answer, TextAnswer):
        return ""
    words = plain_text(answer.text)
    return "" if REGION_IN_TEXT.search(answer.text) and len(words) <= LONGEST_CHIP else words


def label_colours(labels: Iterable[str]) -> dict[str, Colour]:
    """A colour per label: the same in every picture unless another label there has it already."""
    colours: dict[str, Colour] = {}
    for label in sorted(set(labels)):
        first = zlib.crc32(label.encode("utf-8", "replace")) % len(PALETTE)
        choices = PALETTE[first:] + PALETTE[:first]
        free = (colour for colour in choices if colour not in colours.values())
        colours[label] = next(free, choices[0])
    return colours


def _draw_objects(canvas: Image.Image, objects: Sequence[Found], factor: int, labelled: bool) -> None:
    """Large ones first, so that small ones stay visible; all labels on top."""
    keys = [found.label or f"#{index}" for index, found in enumerate(objects)]  # unlabelled ones differ in colour too
    colours = label_colours(keys)
    drawn = sorted(zip(objects, keys, strict=True), key=lambda pair: -_area(pair[0].box))
    for found, key in drawn:
        if found.shape is Shape.POLYGON:
            _tint(canvas, _outlines(found, factor), colours[key])
    for found, key in drawn:
        _outline(canvas, _outlines(found, factor), colours[key])
    draw_labels(
        canvas,
        [
            Label(caption, colours[key], _enlarged(found.box, factor))
            for found, key in reversed(drawn)
            if labelled and (caption := _caption(found))
        ],
    )


def _caption(found: Found) -> str:
    score = "" if found.score is None else f"{found.score:.2f}"
    return " ".join([*found.label.split(), score]).strip()


def _outlines(found: Found, factor: int) -> list[list[Point]]:
    x1, y1, x2, y2 = found.box
    polygons = found.polygons or [[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]]
    return [[(x * factor, y * factor) for x, y in polygon] for polygon in polygons]


def _tint(canvas: Image.Image, outlines: list[list[Point]], colour: Colour) -> None:
    mask = Image.new("L", canvas.size)
    brush = ImageDraw.Draw(mask)
    for outline in outlines:
        if len(outline) > 2:
            brush.polygon(outline, fill=FILL_OPACITY)
    canvas.paste(colour, mask=mask)


def _outline(canvas: Image.Image, outlines: list[list[Point]], colour: Colour) -> None:
    """A line with a thin rim of the opposite brightness: one of the two shows on any background."""
    brush = ImageDraw.Draw(canvas)
    width = max(3, font_size_for(canvas.size) // 5)
    rim = max(1, width // 4)
    for outline in outlines:
        inside = [_inside(point, canvas.size, width // 2) for point in outline]
        closed = inside + inside[:2]  # the second point again, for a clean joint at the first
        if len(outline) > 1:
            brush.line(closed, fill=contrasting(colour), width=width + 2 * rim, joint="curve")
            brush.line(closed, fill=colour, width=width, joint="curve")


def _inside(point: Point, size: tuple[int, int], margin: int) -> Point:
    """The point, moved so far from the picture's edge that a line through it is not cut."""
    x, y = (max(margin, min(at, extent - 1 - margin)) for at, extent in zip(point, size, strict=True))
    return x, y


def _enlarged(box: Box, factor: int) -> Box:
    x1, y1, x2, y2 = box
    return x1 * factor, y1 * factor, x2 * factor, y2 * factor


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _with_strip(canvas: Image.Image, text: str) -> Image.Image:
    """The picture with the text in black on white below it, wrapped to its width."""
    font = Lettering(font_size_for(canvas.size))
    margin = font.line_height // 2
    lines = wrapped(text, font, canvas.width - 2 * margin)
    result = Image.new("RGB", (canvas.width, canvas.height + 2 * margin + font.line_height * len(lines)), "white")
    result.paste(canvas)
    for index, line in enumerate(lines):
        place = (margin, canvas.height + margin + index * font.line_height)
        font.draw(result, place, line, "black")
    return result
