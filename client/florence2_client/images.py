"""Turn images in any form that users hold into the encoded bytes that the server takes.

Files and bytes are sent as they are: the server decodes them and applies their EXIF orientation. A PIL image or an
array is sent as the pixels it holds, without metadata, so that coordinates fit the object in memory.
"""

from __future__ import annotations

import io
import os
import re
import reprlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image

from florence2.config import ImageConfig
from florence2.errors import InvalidImage, InvalidOption
from florence2.formats import HEIC, PDF, found_format
from florence2.images import decode_image, encoded_image
from florence2_client.download import download, shortened


class BinaryFile(Protocol):
    """A file that is open for reading bytes, such as `open(path, "rb")` or `io.BytesIO`."""

    def read(self) -> bytes:
        """Return the rest of the file."""


class Array(Protocol):
    """What numpy can make an array of, such as a torch tensor on the CPU."""

    def __array__(self, dtype: Any = None) -> np.ndarray[Any, Any]:
        """Return the array."""


@dataclass(frozen=True)
class EncodedImage:
    """An image that was read and encoded once, for any number of requests."""

    data: bytes
    scale: tuple[float, float] = (1.0, 1.0)  # of x and y, if the image was scaled down
    original_size: tuple[int, int] | None = None  # (width, height), upright, if that is known


ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray[Any, Any] | Array"
    " | EncodedImage"
)

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,19})://")
BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+")
LONGER_THAN_ANY_PATH = 4096
MOST_BYTES = 1 << 30  # a message of gRPC must be smaller than 2 GiB

_open_files = threading.Lock()  # an open file has one position, which threads would move under each other


def encoded_bytes(image: ImageLike) -> bytes:
    """Return the encoded bytes of an image, which may be given as

    - the path of a file, an `https:`, `http:`, `file:` or `data:` URL, or base64 text;
    - encoded bytes, or a file that is open for reading bytes, whose position stays where it is;
    - a PIL image, or a uint8 array [H, W], [H, W, 3] or [H, W, 4] of numpy or torch.

    A HEIC photo is converted to JPEG. Raise InvalidImage if there is nothing to send. Whether other bytes are an image
    is for the server to decide.
    """
    if isinstance(image, EncodedImage):
        return image.data
    if isinstance(image, Image.Image):
        return _encode(image)
    if not isinstance(image, (bytes, bytearray, memoryview)) and hasattr(image, "__array__"):
        return _encode(_from_array(image))
    data = read_bytes(image)
    try:
        plain = encoded_image(data)
    except InvalidImage:
        return data  # the server says what is wrong with it
    kind = found_format(plain)
    if kind == PDF:
        raise InvalidImage("this is a PDF document; florence2_client.pages(...) yields its pages as images")
    return _from_heic(plain) if kind == HEIC else data


def read_bytes(source: ImageLike) -> bytes:
    """Return the bytes of a path, URL, base64 text, bytes or an open file. Raise InvalidImage if there are none."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str):
        data = _from_text(source)
    elif isinstance(source, os.PathLike):
        data = _from_path(source)
    elif hasattr(source, "read"):
        data = _from_file(source)
    else:
        raise InvalidImage(
            "an image is a path, a URL, base64 text, bytes, an open file, a PIL image or a uint8 array, "
            f"not a value of type {type(source).__name__}"
        )
    if not data:
        raise InvalidImage("the image is empty (0 bytes)")
    _require_sendable(len(data))
    return data


def _require_sendable(size: int) -> None:
    if size > MOST_BYTES:
        raise InvalidImage(f"the image has {size:,} bytes; at most {MOST_BYTES:,} can be sent")


def decoded_image(image: ImageLike, frame: int = 0) -> Image.Image:
    """Return the image in RGB and upright, as the server sees it. Raise InvalidImage if it cannot be decoded."""
    decoded = decode_image(encoded_image(encoded_bytes(image)), ImageConfig.max_pixels, frame)
    # Drop EXIF and XMP, or a viewer would rotate the image again. The color profile still applies.
    decoded.info = {name: value for name, value in decoded.info.items() if name == "icc_profile"}
    return decoded


def encode_image(image: ImageLike, max_side: int | None = None) -> EncodedImage:
    """Return the image as it is sent, scaled down to at most `max_side` pixels on each side.

    A small image stays untouched, and so does one that is encoded already. Raise InvalidImage if there is none to send.
    """
    if isinstance(image, EncodedImage):
        return image
    if max_side is None:
        return EncodedImage(encoded_bytes(image))
    if isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1:
        raise InvalidOption(f"max_side must be a whole number of pixels above 0, not {reprlib.repr(max_side)}")
    small = decoded_image(image)
    size = small.size
    if max(size) <= max_side:
        return EncodedImage(encoded_bytes(image), original_size=size)
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return EncodedImage(_jpeg(small), (small.width / size[0], small.height / size[1]), size)


def _from_text(text: str) -> bytes:
    """Return the encoded bytes that a path, URL or base64 text stands for."""
    if text[:5].lower() == "data:":
        return encoded_image(text.encode("utf-8", "replace"))
    if scheme := SCHEME.match(text):
        if scheme[1].lower() in ("http", "https"):
            return download(text)
        if scheme[1].lower() == "file":
            return _from_path(url2pathname(urlsplit(text).path))
        raise InvalidImage(f"{shortened(text)} cannot be fetched; only http:// and https:// URLs are")
    try:
        return _from_path(text)
    except InvalidImage as no_file:
        if not BASE64.fullmatch(text):
            raise
        try:
            data = encoded_image(text.encode())
            Image.open(io.BytesIO(data)).close()  # reads no more than the header
            return data
        except Exception as error:  # whatever Pillow makes of bytes that are no image
            if len(text) < LONGER_THAN_ANY_PATH:
                raise no_file from None
            message = "the text is neither the path of a file, nor a URL, nor an image in base64"
            raise InvalidImage(message) from error


def _from_path(path: str | os.PathLike[str]) -> bytes:
    name = shortened(os.fspath(path))
    try:
        _require_sendable(os.stat(path).st_size)
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InvalidImage(f"there is no file {name}") from error
    except IsADirectoryError as error:
        raise InvalidImage(f"{name} is a directory, not an image") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise InvalidImage(f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _from_file(file: Any) -> bytes:
    """Read a file from its position, or from its start if that is at the end, as after writing it."""
    try:
        with _open_files:
            start = file.tell() if file.seekable() else None
            data = file.read()
            if start is not None:
                if not data:
                    file.seek(0)
                    data = file.read()
                file.seek(start)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # ValueError: it is closed
        raise InvalidImage(f"the open file cannot be read: {error}") from error
    if isinstance(data, str):
        raise InvalidImage("the file is open for reading text; open it with mode 'rb'")
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidImage(f"read() of the open file returned a value of type {type(data).__name__}, not bytes")
    return bytes(data)


def _from_heic(data: bytes) -> bytes:
    try:
        import pi_heif
    except ImportError as error:
        remedy = "needs the package pi-heif: pip install 'florence2-triton[heif]'"
        raise InvalidImage(f"the image is a HEIC photo, which {remedy}") from error
    try:
        heic = pi_heif.open_heif(io.BytesIO(data))
        width, height = heic.size
        if width * height > ImageConfig.max_pixels:
            limit = f"at most {ImageConfig.max_pixels:,} are accepted"
            raise InvalidImage(f"the image has {width} x {height} pixels; {limit}")
        return _jpeg(heic.to_pillow().convert("RGB"))
    except InvalidImage:
        raise
    except Exception as error:  # libheif's own, and what Pillow makes of its pixels
        raise InvalidImage("the HEIC photo is damaged or incomplete") from error


def _from_array(source: Any) -> Image.Image:
    try:
        array = np.asarray(source)
    except Exception as error:  # a tensor on a GPU, or one that needs a gradient
        kind = type(source).__name__
        raise InvalidImage(f"the {kind} cannot be read as an array of numpy; is it on another device?") from error
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
    except Exception as error:  # a lazily opened file is decoded only here, which may raise nearly anything
        raise InvalidImage(f"the image cannot be read: {error}") from error
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    """Return a JPEG with next to no loss, in an RGB image's own color profile."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
