"""Pictures as callers hold them, turned into the encoded bytes that travel to the server.

A file or bytes go out untouched: the server decodes them and applies their EXIF orientation. A PIL image or an array is
taken as the pixels it holds, without metadata, so coordinates fit the object in the caller's hands.
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

Picture: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray[Any, Any]"

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


def encoded_picture(picture: Picture) -> bytes:
    """The encoded bytes of a path, of bytes, of a PIL image or of a uint8 array [H, W], [H, W, 3] or [H, W, 4].

    Raises InvalidImage if there is nothing to send; whether bytes hold a picture is the server's to say.
    """
    if isinstance(picture, Image.Image):
        return _encode(picture)
    if isinstance(picture, np.ndarray):
        return _encode(_from_array(picture))
    data = bytes(picture) if isinstance(picture, (bytes, bytearray, memoryview)) else _read(picture)
    if not data:
        raise InvalidImage("the picture is empty (0 bytes)")
    return data


def decoded_picture(picture: Picture) -> Image.Image:
    """The picture in RGB, upright, as the server sees it. Raises InvalidImage."""
    image = decode_image(encoded_image(encoded_picture(picture)), ImageConfig.max_pixels)
    # Whoever heeds EXIF or XMP would turn it once more; the colour profile still holds.
    image.info = {name: value for name, value in image.info.items() if name == "icc_profile"}
    return image


def shrunk_picture(picture: Picture, max_side: int) -> tuple[bytes, tuple[float, float], tuple[int, int]]:
    """Encoded bytes of the picture with no side above `max_side`, by how much x and y shrank, and the picture's
    (width, height) before, upright. A picture that is small enough goes out untouched.
    """
    if isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1:
        raise InvalidOption(f"max_side must be a whole number of pixels above 0, not {max_side!r}")
    image = decoded_picture(picture)
    size = image.size
    if max(size) <= max_side:
        return encoded_picture(picture), (1.0, 1.0), size
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), (image.width / size[0], image.height / size[1]), size


def _read(path: str | os.PathLike[str]) -> bytes:
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidImage(f"a picture is a path, bytes, a PIL image or an array, not {type(path).__name__}")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InvalidImage(f"there is no file {os.fspath(path)}") from error
    except IsADirectoryError as error:
        raise InvalidImage(f"{os.fspath(path)} is a directory, not a picture") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InvalidImage(f"{os.fspath(path)!r} cannot be read: {reason}") from error


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    grey = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if grey.dtype != np.uint8 or not (grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4))):
        raise InvalidImage(
            "a picture as an array is uint8 of shape [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA), "
            f"not {array.dtype} of shape {list(array.shape)}"
        )
    if grey.size == 0:
        raise InvalidImage("the picture has no pixels")
    return Image.fromarray(grey)


def _encode(image: Image.Image) -> bytes:
    """Lossless: PNG, lightly compressed since it lives for one request; float pixels, which PNG lacks, as TIFF."""
    if image.width == 0 or image.height == 0:
        raise InvalidImage("the picture has no pixels")
    buffer = io.BytesIO()
    try:
        if image.mode == "F":
            image.save(buffer, "TIFF", exif=b"")
        else:
            kept = image if image.mode in PNG_MODES else image.convert("RGB")
            kept.save(buffer, "PNG", compress_level=1, exif=b"")
    except (OSError, SyntaxError, ValueError) as error:  # a lazily opened file is decoded only here
        raise InvalidImage(f"the picture cannot be read: {error}") from error
    return buffer.getvalue()
