"""Draw sample images, to compare the export with the checkpoint and to calibrate 8-bit ranges.

They have the model's own size, so that nothing is resized, and are the same every time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from florence2.config import ImageConfig

CALIBRATION = 8
CALIBRATION_SEED = 11  # so that these images differ from those that are compared


def calibration_images(image: ImageConfig) -> list[NDArray[np.uint8]]:
    """Return the images [H, W, 3] for calibration."""
    return [np.asarray(drawn) for drawn in draw_images(image, CALIBRATION, CALIBRATION_SEED)]


def draw_images(image: ImageConfig, count: int, seed: int = 2) -> list[Image.Image]:
    """Return images of shapes, a gradient and noise."""
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        noise = random.integers(0, 60, (image.height, image.width, 3))
        slope = np.linspace(0, 190, image.width)[None, :, None] * random.random(3)
        canvas = Image.fromarray((noise + slope).astype(np.uint8))
        pen = ImageDraw.Draw(canvas)
        for _ in range(4):
            left, top = random.uniform(0, 0.6, 2) * (image.width, image.height)
            box = (left, top, left + image.width / 4, top + image.height / 4)
            draw = pen.ellipse if random.random() < 0.5 else pen.rectangle
            draw(box, fill=tuple(int(value) for value in random.integers(0, 256, 3)))
        drawn.append(canvas)
    return drawn
