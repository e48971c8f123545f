"""Text on pictures: wrapping, and label chips that stay inside the picture and off each other."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from florence2_client.drawing.fonts import Lettering

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2

MOST_LINES = 3
WIDEST = 0.45  # of the picture's width, unless the mark itself is wider


@dataclass(frozen=True)
class Label:
    """What is written at a mark, in the mark's colour."""

    text: str
    colour: Colour
    bounds: Rectangle  # of the mark


def font_size_for(size: tuple[int, int]) -> int:
    """Grows with the picture (width, height), but stays within a narrow one."""
    width, height = size
    return round(max(9, min(max(14, math.sqrt(width * height) / 36), min(size) / 4)))


def contrasting(colour: Colour) -> Colour:
    """Black or white, whichever reads better: the contrast is at least 4.5 : 1 (WCAG 2, gamma taken as 2.2)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw_labels(canvas: Image.Image, labels: Sequence[Label]) -> None:
    """Draws the chips; earlier labels choose their places first."""
    font = Lettering(font_size_for(canvas.size))
    padding = max(2, round(font.size / 5))
    taken: list[Rectangle] = []
    for label in labels:
        room = min(canvas.width, max(WIDEST * canvas.width, label.bounds[2] - label.bounds[0]))
        lines = _shortened(wrapped(label.text, font, room - 2 * padding))
        width = math.ceil(max(map(font.getlength, lines))) + 2 * padding
        height = font.line_height * len(lines) + padding
        place = _best_place((width, height), label.bounds, canvas.size, taken)
        taken.append(place)
        _draw_chip(canvas, place, lines, label.colour, font, padding)


def wrapped(text: str, font: Lettering, width: float) -> list[str]:
    """The text in lines that fit the width; line breaks are kept, words wider than a line are cut."""
    return [line for paragraph in text.splitlines() for line in _wrapped_paragraph(paragraph, font, width)]


def _wrapped_paragraph(text: str, font: Lettering, width: float) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = ""
        line = f"{line} {word}".lstrip()
        while font.getlength(line) > width and len(line) > 1:
            cut = _fitting(line, font, width)
            yield line[:cut]
            line = line[cut:]
    yield line


def _fitting(line: str, font: Lettering, width: float) -> int:
    """How many characters fit; at least one, or wrapping would not end."""
    return 1 + bisect.bisect_right(range(2, len(line)), width, key=lambda end: font.getlength(line[:end]))


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_LINES:
        return lines
    return [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-1].rstrip() + "…"]


def _best_place(
    chip: tuple[int, int], mark: Rectangle, canvas: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """The first place near the mark that covers no other chip, or the one that covers least."""
    width, height = chip
    places = []
    for x, y in _corners(chip, mark):
        left = max(0, min(x, canvas[0] - width))
        top = max(0, min(y, canvas[1] - height))
        places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _corners(chip: tuple[int, int], mark: Rectangle) -> Iterator[tuple[float, float]]:
    """Top left corners to try, best first: above the mark, below it, inside, beside, then further away."""
    width, height = chip
    x1, y1, x2, y2 = mark
    yield from ((x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2))
    yield from ((x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height))
    yield from ((x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height))
    for step in range(1, 4):
        yield from ((x1, y1 + step * height), (x1, y2 + step * height), (x1, y1 - (step + 1) * height))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _draw_chip(
    canvas: Image.Image, place: Rectangle, lines: list[str], colour: Colour, font: Lettering, padding: int
) -> None:
    brush = ImageDraw.Draw(canvas)
    x1, y1, x2, y2 = place
    brush.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    for index, line in enumerate(lines):
        origin = (x1 + padding, y1 + padding / 2 + index * font.line_height)
        font.draw(canvas, origin, line, contrasting(colour))
