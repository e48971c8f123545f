"""Turn images in any form that users hold into the encoded bytes that the server takes.

Files and bytes are sent as they are: the server decodes them and applies their EXIF orientation. A PIL image or an
array is sent as the pixels it holds, without metadata, so that coordinates fit the object in memory.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from florence2.config import ImageConfig
from florence2.errors import InvalidImage, InvalidOption
from florence2.images import decode_image, encoded_image

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray[Any, Any]"

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


def encoded_bytes(image: ImageLike) -> bytes:
    """Return the encoded bytes of a path, bytes, a PIL image or a uint8 array [H, W], [H, W, 3] or [H, W, 4].

    Raise InvalidImage if there is nothing to send. Whether the bytes are an image is for the server to decide.
    """
    if isinstance(image, Image.Image):
        return _encode(image)
    if isinstance(image, np.ndarray):
        return _encode(_from_array(image))
    data = bytes(image) if isinstance(image, (bytes, bytearray, memoryview)) else _read(image)
    if not data:
        raise InvalidImage("the image is empty (0 bytes)")
    return data


def decoded_image(image: ImageLike) -> Image.Image:
    """Return the image in RGB and upright, as the server sees it. Raise InvalidImage if it cannot be decoded."""
    decoded = decode_image(encoded_image(encoded_bytes(image)), ImageConfig.max_pixels)
    # Drop EXIF and XMP, or a viewer would rotate the image again. The color profile still applies.
    decoded.info = {name: value for name, value in decoded.info.items() if name == "icc_profile"}
    return decoded


def scaled_down(image: ImageLike, max_side: int) -> tuple[bytes, tuple[float, float], tuple[int, int]]:
    """Scale an image down to at most `max_side` pixels on each side; leave a small one untouched.

    Return the encoded bytes, the scale of x and y, and the original (width, height), upright.
    """
    if isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1:
        raise InvalidOption(f"max_side must be a whole number of pixels above 0, not {max_side!r}")
    small = decoded_image(image)
    size = small.size
    if max(size) <= max_side:
        return encoded_bytes(image), (1.0, 1.0), size
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), (small.width / size[0], small.height / size[1]), size


def _read(path: str | os.PathLike[str]) -> bytes:
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidImage(f"an image is a path, bytes, a PIL image or an array, not {type(path).__name__}")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InvalidImage(f"there is no file {os.fspath(path)}") from error
    except IsADirectoryError as error:
        raise InvalidImage(f"{os.fspath(path)} is a directory, not an image") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InvalidImage(f"{os.fspath(path)!r} cannot be read: {reason}") from error


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    gray = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if gray.dtype != np.uint8 or not (gray.ndim == 2 or (gray.ndim == 3 and gray.shape[2] in (3, 4))):
        raise InvalidImage(
            "an image array is uint8 of shape [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA), "
            f"not {array.dtype} of shape {list(array.shape)}"
        )
    if gray.size == 0:
        raise InvalidImage("the image has no pixels")
    return Image.fromarray(gray)


def _encode(image: Image.Image) -> bytes:
    """Encode without loss: as PNG, lightly compressed because it lives for one request, or TIFF for float pixels."""
    if image.width == 0 or image.height == 0:
        raise InvalidImage("the image has no pixels")
    buffer = io.BytesIO()
    try:
        if image.mode == "F":
            image.save(buffer, "TIFF", exif=b"")
        else:
            kept = image if image.mode in PNG_MODES else image.convert("RGB")
            kept.save(buffer, "PNG", compress_level=1, exif=b"")
    except (OSError, SyntaxError, ValueError) as error:  # a lazily opened file is decoded only here
        raise InvalidImage(f"the image cannot be read: {error}") from error
    return buffer.getvalue()
