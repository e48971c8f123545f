"""From an encoded image to an upright RGB image and to the model's pixels. The preprocess model calls this.

Images come from untrusted clients: whatever Pillow makes of damaged or hostile bytes ends here as InvalidImage, and no
more pixels are decoded than allowed. Normalization is part of the ONNX graph.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import urllib.parse
import warnings
from io import BytesIO
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, IcnsImagePlugin, IcoImagePlugin, Image, ImageCms, UnidentifiedImageError

from florence2.config import ImageConfig
from florence2.errors import InvalidImage

# EPS would run Ghostscript; IPTC and BLP wrap a second image whose size their own header does not state.
Image.init()
_FORMATS = tuple(name for name in Image.ID if name not in {"EPS", "IPTC", "BLP"})

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # the operation that undoes each EXIF orientation

_TRANSPARENT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"}
_INTEGER_SCALES = [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
_FLOAT_SCALES = [1.0, 2.0, 4.0, 8.0, 16.0, *_INTEGER_SCALES]  # above 1: high dynamic range of so many stops

_BASE64 = re.compile(rb"[A-Za-z0-9+/_=\s-]*")
_ADDRESS = re.compile(rb"\s*[A-Za-z][A-Za-z0-9+.-]{1,9}://")
_PLAIN_PNM = re.compile(rb"P[1-7]\s")  # the only image format whose header base64 can contain
_URLSAFE = bytes.maketrans(b"-_", b"+/")


def encoded_image(data: bytes) -> bytes:
    """Return the encoded image from raw bytes, base64 text or a data URL. Raise InvalidImage if the text is damaged.

    Base64 may use either alphabet, be broken into lines, and lack its padding.
    """
    if data.lstrip()[:5].lower() == b"data:":
        header, _, payload = data.partition(b",")
        payload = urllib.parse.unquote_to_bytes(payload)
        return _from_base64(payload) if header.rstrip().lower().endswith(b";base64") else payload
    if _ADDRESS.match(data):
        raise InvalidImage("IMAGE is a URL, but the server fetches nothing; send the image itself")
    if _BASE64.fullmatch(data) and not _PLAIN_PNM.match(data):
        return _from_base64(data)
    return data


def _from_base64(text: bytes) -> bytes:
    letters = text.translate(_URLSAFE, delete=b" \t\n\r\v\f").rstrip(b"=")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise InvalidImage("the image's base64 text is damaged or incomplete") from error


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return the first frame in RGB: rotated as EXIF says, transparency over white, deep gray scaled to 8 bits.

    The size in the header is checked against `max_pixels` before anything is decoded; Pillow's own limit of 179 million
    pixels also applies. Raise InvalidImage if the image cannot be decoded or is too large.
    """
    if not data:
        raise InvalidImage("the image is empty")
    try:
        with _pillow_warnings:
            _check_icon(data, max_pixels)
            with Image.open(BytesIO(data), formats=_FORMATS) as image:
                _check_pixels(image, max_pixels)
                image.load()
                return _upright(_rgb(image), _orientation(image))
    except InvalidImage:
        raise
    except UnidentifiedImageError as error:
        raise InvalidImage("the image is damaged or not in a format that can be read") from error
    except Image.DecompressionBombError as error:
        raise InvalidImage("the image has too many pixels") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly every built-in exception
        raise InvalidImage("the image is damaged or incomplete") from error


def to_pixels(image: Image.Image, config: ImageConfig) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3], resized as the checkpoint's processor does, without keeping the aspect ratio."""
    resized = image.resize((config.width, config.height), Image.Resampling(config.resample))
    return np.asarray(resized, dtype=np.uint8)


class _IgnoredWarnings:
    """Silence Pillow while at least one thread decodes.

    With `warnings.catch_warnings`, threads that overlap would restore each other's filters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._threads == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._threads += 1

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._caught.__exit__(None, None, None)


_pillow_warnings = _IgnoredWarnings()


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InvalidImage(f"the image has {width} x {height} pixels; at most {max_pixels:,} are accepted")


def _check_icon(data: bytes, max_pixels: int) -> None:
    """Raise InvalidImage if an image inside an ICO or ICNS is too large: its size may differ from the icon's header."""
    for content in _icon_contents(data):
        try:
            with Image.open(BytesIO(content), formats=("PNG", "JPEG2000", "DIB")) as image:
                _check_pixels(image, max_pixels)
        except UnidentifiedImageError:
            continue  # an old format, as large as the icon's header says


def _icon_contents(data: bytes) -> list[bytes]:
    if data.startswith(b"\0\0\1\0"):
        return [data[IcoImagePlugin.IcoFile(BytesIO(data)).entry[0].offset :]]
    if data.startswith(b"icns"):
        icon = IcnsImagePlugin.IcnsFile(BytesIO(data))
        spans = [icon.dct[code] for code, _ in icon.SIZES[icon.bestsize()] if code in icon.dct]
        return [data[start : start + length] for start, length in spans]
    return []


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image, or 1 if EXIF is damaged. Pillow rotates TIFF while loading."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as many kinds as for damaged pixels, and no reason to refuse the image
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode in _TRANSPARENT_MODES and image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image  # premultiplied gray converts to nothing else
        return _over_white(straight.convert("RGBA"))
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only in-place conversion returns None
    return converted


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return deep gray scaled to 0..255.

    White is the smallest common full scale that contains the brightest value, as 12-bit scans come in 16-bit files.
    If none does, or with negative values, the image's range is stretched.
    """
    scales = _FLOAT_SCALES if values.dtype.kind == "f" else _INTEGER_SCALES
    gray = values.astype(np.float32)
    finite = np.isfinite(gray)
    low, high = float(gray.min(initial=0.0, where=finite)), float(gray.max(initial=0.0, where=finite))
    white = high if low < 0 else next((scale for scale in scales if high <= scale), high)
    factor = 255 / (white - low)
    with np.errstate(all="ignore"):
        gray *= factor
        gray -= low * factor
    np.nan_to_num(gray, copy=False, nan=0.0)
    return np.rint(gray.clip(0, 255, out=gray), out=gray).astype(np.uint8)
