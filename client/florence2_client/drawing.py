"""Draws an answer on its picture: outlines, translucent areas, labels, and longer text as a strip below.

`draw` is used by the library and the command line. Labels and their places are in `labels`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from florence2.config import ImageConfig
from florence2.images import decode_image, encoded_image
from florence2.locations import to_pixel
from florence2.results import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2_client.labels import (
    Colour,
    Label,
    Rectangle,
    contrasting,
    draw_labels,
    font_of_size,
    font_size_for,
    line_height,
    wrapped,
)
from florence2_client.pictures import Picture, encoded_picture

Point = tuple[float, float]

PALETTE: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 210, 0), (30, 110, 240), (245, 130, 48), (150, 50, 200), (30, 200, 230),
    (240, 50, 230), (160, 220, 40), (255, 130, 170), (0, 140, 130), (165, 95, 40), (130, 130, 255), (160, 30, 60),
)  # fmt: skip
READABLE_SIDE = 480  # smaller pictures are enlarged so that text on them can be read
FILL_OPACITY = 90  # of 255
LONGEST_CHIP = 40  # characters; a region's text beyond that goes below the picture
REGION_IN_TEXT = re.compile(r"(?<!>)(?:<loc_\d+>){4}(?!<loc_)")


@dataclass(frozen=True)
class Mark:
    """One thing found: its outlines in pixels, what is written at it, and whether its area is tinted."""

    outlines: list[list[Point]]
    label: str
    score: float | None = None
    tinted: bool = False

    @property
    def caption(self) -> str:
        score = "" if self.score is None else f"{self.score:.2f}"
        return " ".join([*self.label.split(), score]).strip()


def draw(picture: Picture, answer: Answer) -> Image.Image:
    """A new RGB picture with the answer on it, upright as the answer's coordinates are.

    Pictures with a longer side below 480 pixels come out enlarged by a whole factor; text answers make the picture
    taller. Raises InvalidImage if the picture cannot be read.
    """
    canvas = decode_image(encoded_image(encoded_picture(picture)), ImageConfig.max_pixels)
    marks, text = marks_of(answer, canvas.size)
    factor = math.ceil(READABLE_SIDE / max(canvas.size))
    canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
    _draw_marks(canvas, [_scaled(mark, factor) for mark in marks])
    return _with_strip(canvas, text) if text else canvas


def marks_of(answer: Answer, size: tuple[int, int]) -> tuple[list[Mark], str]:
    """What to draw on a picture of a size (width, height), and the text to write below it."""
    match answer:
        case Boxes():
            return _boxes(answer.bboxes, answer.labels, answer.scores), ""
        case Quads():
            pairs = zip(answer.quad_boxes, answer.labels, strict=True)
            return [Mark([_points(quad)], label) for quad, label in pairs], ""
        case Polygons():
            return _polygons(answer.polygons, answer.labels), ""
        case BoxesAndPolygons():
            boxes = _boxes(answer.bboxes, answer.bboxes_labels, answer.scores)
            return boxes + _polygons(answer.polygons, answer.polygons_labels), ""
        case TextAnswer():
            return _regions_of_text(answer.text, size)


def _boxes(boxes: Iterable[Sequence[float]], labels: Iterable[str], scores: Sequence[float] | None) -> list[Mark]:
    return [
        Mark([[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]], label, scores[index] if scores else None)
        for index, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True))
    ]


def _polygons(instances: Iterable[Iterable[Sequence[float]]], labels: Iterable[str]) -> list[Mark]:
    return [
        Mark([_points(polygon) for polygon in instance], label, tinted=True)
        for instance, label in zip(instances, labels, strict=True)
    ]


def _points(flat: Sequence[float]) -> list[Point]:
    return list(zip(flat[0::2], flat[1::2], strict=True))


def _regions_of_text(text: str, size: tuple[int, int]) -> tuple[list[Mark], str]:
    """Answers of region tasks carry the region in their text: `car<loc_1><loc_2><loc_3><loc_4>`."""
    words = re.sub(r"<loc_\d+>", "", text).strip()
    boxes = [region_box(region, size) for region in REGION_IN_TEXT.findall(text)]
    fits = bool(boxes) and len(words) <= LONGEST_CHIP
    return _boxes(boxes, [words if fits else ""] * len(boxes), None), "" if fits else words


def region_box(region: str, size: tuple[int, int]) -> list[float]:
    """x1, y1, x2, y2 in pixels of what REGION_IN_TEXT finds."""
    return [to_pixel(int(bin_), extent) for bin_, extent in zip(re.findall(r"\d+", region), size * 2, strict=True)]


def _scaled(mark: Mark, factor: int) -> Mark:
    outlines = [[(x * factor, y * factor) for x, y in outline] for outline in mark.outlines]
    return dataclasses.replace(mark, outlines=outlines)


def label_colours(labels: Iterable[str]) -> dict[str, Colour]:
    """A colour per label: the same in every picture unless another label there has it already."""
    colours: dict[str, Colour] = {}
    for label in sorted(set(labels)):
        first = zlib.crc32(label.encode("utf-8", "replace")) % len(PALETTE)
        choices = PALETTE[first:] + PALETTE[:first]
        free = (colour for colour in choices if colour not in colours.values())
        colours[label] = next(free, choices[0])
    return colours


def _draw_marks(canvas: Image.Image, marks: Sequence[Mark]) -> None:
    """Large marks first, so that small ones stay visible; all labels on top."""
    marks = [mark for mark in marks if any(mark.outlines)]
    keys = [mark.label or f"#{index}" for index, mark in enumerate(marks)]  # unlabelled ones differ in colour too
    colours = label_colours(keys)
    drawn = sorted(zip(marks, keys, strict=True), key=lambda pair: -_area(_bounds(pair[0])))
    for mark, key in drawn:
        if mark.tinted:
            _tint(canvas, mark, colours[key])
    for mark, key in drawn:
        _outline(canvas, mark, colours[key])
    captioned = [(mark, key) for mark, key in reversed(drawn) if mark.caption]
    draw_labels(canvas, [Label(mark.caption, colours[key], _bounds(mark)) for mark, key in captioned])


def _tint(canvas: Image.Image, mark: Mark, colour: Colour) -> None:
    mask = Image.new("L", canvas.size)
    brush = ImageDraw.Draw(mask)
    for outline in mark.outlines:
        if len(outline) > 2:
            brush.polygon(outline, fill=FILL_OPACITY)
    canvas.paste(colour, mask=mask)


def _outline(canvas: Image.Image, mark: Mark, colour: Colour) -> None:
    """A line with a thin rim of the opposite brightness: one of the two shows on any background."""
    brush = ImageDraw.Draw(canvas)
    width = max(3, font_size_for(canvas.size) // 5)
    rim = max(1, width // 4)
    for outline in mark.outlines:
        inside = [_inside(point, canvas.size, width // 2) for point in outline]
        closed = inside + inside[:2]  # the second point again, for a clean joint at the first
        if len(outline) > 1:
            brush.line(closed, fill=contrasting(colour), width=width + 2 * rim, joint="curve")
            brush.line(closed, fill=colour, width=width, joint="curve")


def _inside(point: Point, size: tuple[int, int], margin: int) -> Point:
    """The point, moved so far from the picture's edge that a line through it is not cut."""
    x, y = (max(margin, min(at, extent - 1 - margin)) for at, extent in zip(point, size, strict=True))
    return x, y


def _bounds(mark: Mark) -> Rectangle:
    xs, ys = zip(*itertools.chain.from_iterable(mark.outlines), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _area(bounds: Rectangle) -> float:
    return (bounds[2] - bounds[0]) * (bounds[3] - bounds[1])


def _with_strip(canvas: Image.Image, text: str) -> Image.Image:
    """The picture with the text in black on white below it, wrapped to its width."""
    font = font_of_size(font_size_for(canvas.size))
    margin = line_height(font) // 2
    lines = wrapped(text, font, canvas.width - 2 * margin)
    result = Image.new("RGB", (canvas.width, canvas.height + 2 * margin + line_height(font) * len(lines)), "white")
    result.paste(canvas)
    brush = ImageDraw.Draw(result)
    for index, line in enumerate(lines):
        place = (margin, canvas.height + margin + index * line_height(font))
        brush.text(place, line, fill="black", font=font)
    return result
