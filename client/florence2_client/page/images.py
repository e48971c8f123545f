"""Scale images down for the screen, in a format that every browser shows."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from florence2.errors import InvalidImage
from florence2_client.images import decoded_image

LARGEST_SIDE = 1280  # pixels of an image on the screen
QUALITY = 88


@dataclass(frozen=True)
class Preview:
    """An uploaded image as every browser can show it, or `problem`: why it cannot be shown."""

    image: str = ""  # a URL
    width: int = 0  # of the image itself, upright
    height: int = 0
    problem: str = ""  # HTML


def preview_of(path: str) -> Preview:
    """Return the preview of a file: browsers show neither TIFF nor HEIC, and take long for a large image."""
    try:
        image = decoded_image(Path(path))  # a file and nothing else: the page fetches no URLs for visitors
    except InvalidImage as error:
        return Preview(problem=html.escape(str(error)))
    return Preview(data_url(image), *image.size)


def data_url(image: Image.Image) -> str:
    """Return the image, scaled down to LARGEST_SIDE, as the URL of a JPEG."""
    shown = image.copy() if max(image.size) <= LARGEST_SIDE else image.reduce(max(image.size) // LARGEST_SIDE)
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
