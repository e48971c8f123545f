"""Wrap text, and place label chips inside the image and off each other."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from florence2_client.drawing.fonts import TextFont

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2

MOST_LINES = 3
WIDEST = 0.45  # of the image's width, unless the object itself is wider


@dataclass(frozen=True)
class Label:
    """The text at an object, in the object's color."""

    text: str
    color: Color
    bounds: Rectangle  # of the object


def font_size_for(size: tuple[int, int]) -> int:
    """Return a font size that grows with the image (width, height), but fits a narrow one."""
    width, height = size
    return round(max(9, min(max(14, math.sqrt(width * height) / 36), min(size) / 4)))


def contrasting(color: Color) -> Color:
    """Return black or white, whichever is more readable: at least 4.5 : 1 in contrast (WCAG 2, for gamma 2.2)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in color)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw_labels(canvas: Image.Image, labels: Sequence[Label]) -> None:
    """Draw the chips; earlier labels are placed first."""
    font = TextFont(font_size_for(canvas.size))
    padding = max(2, round(font.size / 5))
    brush = ImageDraw.Draw(canvas)
    taken: list[Rectangle] = []
    for label in labels:
        room = min(canvas.width, max(WIDEST * canvas.width, label.bounds[2] - label.bounds[0]))
        lines = wrapped(label.text, font, room - 2 * padding)
        if len(lines) > MOST_LINES:
            lines[MOST_LINES - 1 :] = [lines[MOST_LINES - 1][:-1].rstrip() + "…"]
        width = math.ceil(max(map(font.getlength, lines))) + 2 * padding
        height = font.line_height * len(lines) + padding
        x1, y1, x2, y2 = place = _best_place((width, height), label.bounds, canvas.size, taken)
        taken.append(place)
        brush.rectangle((x1, y1, x2 - 1, y2 - 1), fill=label.color)
        for index, line in enumerate(lines):
            origin = (x1 + padding, y1 + padding / 2 + index * font.line_height)
            font.draw(canvas, origin, line, contrasting(label.color))


def wrapped(text: str, font: TextFont, width: float) -> list[str]:
    """Split text into lines that fit the width. Keep its line breaks; cut words that are wider than a line."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = ""
            line = f"{line} {word}".lstrip()
            while font.getlength(line) > width and len(line) > 1:
                cut = _fitting(line, font, width)
                lines.append(line[:cut])
                line = line[cut:]
        lines.append(line)
    return lines


def _fitting(line: str, font: TextFont, width: float) -> int:
    """Return how many characters fit: at least one, or wrapping would not end."""
    return 1 + bisect.bisect_right(range(2, len(line)), width, key=lambda end: font.getlength(line[:end]))


def _best_place(
    chip: tuple[int, int], target: Rectangle, canvas: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Return the first place near the object that covers no other chip, or the one that covers least."""
    width, height = chip
    x1, y1, x2, y2 = target
    corners = [  # top left, best first: above the object, below it, inside, next to it, then further away
        *((x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2)),
        *((x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)),
        *((x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)),
    ]
    for step in range(1, 4):
        corners += [(x1, y1 + step * height), (x1, y2 + step * height), (x1, y1 - (step + 1) * height)]
    places = []
    for x, y in corners:
        left, top = max(0, min(x, canvas[0] - width)), max(0, min(y, canvas[1] - height))
        places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
