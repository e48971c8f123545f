"""Draw the parts of a scene, and measure its words."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.toy_model.shapes import Background, Shape, Word

MEASURE_SIZE = 960


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
