"""From an encoded image to an upright RGB image and to the model's pixels. The preprocess model calls this.

Images come from untrusted clients: whatever Pillow makes of damaged or hostile bytes ends here as InvalidImage, and
decoding is bounded in pixels, memory, and time. Normalization is part of the ONNX graph.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
import warnings
from collections.abc import Iterator
from io import BytesIO
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, IcnsImagePlugin, IcoImagePlugin, Image, ImageCms, UnidentifiedImageError

from florence2.config import ImageConfig
from florence2.errors import InvalidImage
from florence2.formats import found_format, is_camera_raw

# EPS would run Ghostscript; IPTC and BLP wrap a second image whose size their own header does not state.
Image.init()
_FORMATS = tuple(name for name in Image.ID if name not in {"EPS", "IPTC", "BLP"})

# How many pixels of PNG or JPEG take the time and memory of one pixel in a slower format, measured on 25 megapixels.
_COSTS = {"AVIF": 2, "WEBP": 2, "JPEG2000": 10}
_COST_IN_PYTHON = 25  # of a decoder that Pillow has only in Python, such as those of QOI, XPM, BMP RLE, and plain PGM
_CHEAP_SCANS = 20  # of a progressive JPEG; cameras and libraries write ten
MAX_SIDE = 500_000  # resizing takes 32 bytes for each pixel of a side
MAX_SECONDS = 5.0  # of processor time
_BAND = 2**20  # pixels that are converted at a time

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
_LAB_TO_SRGB = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")

_BASE64 = re.compile(rb"[A-Za-z0-9+/_=\s-]*")
_ADDRESS = re.compile(rb"\s*[A-Za-z][A-Za-z0-9+.-]{1,9}://")
_PLAIN_PNM = re.compile(rb"P[1-7]\s")  # the only image format whose header base64 can contain
_DAMAGED_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_URLSAFE = bytes.maketrans(b"-_", b"+/")


def encoded_image(data: bytes) -> bytes:
    """Return the encoded image from raw bytes, base64 text or a data URL. Raise InvalidImage if the text is damaged.

    Base64 may use either alphabet, be broken into lines, and lack its padding.
    """
    if data.lstrip()[:5].lower() == b"data:":
        header, _, payload = data.partition(b",")
        if _DAMAGED_ESCAPE.search(payload):
            raise InvalidImage("the image's data URL is damaged: % without two hexadecimal digits")
        if b"%" in payload:
            # As quoted-printable, because `urllib` takes seconds and gigabytes for a few million escapes.
            payload = binascii.a2b_qp(payload.replace(b"=", b"=3D").replace(b"%", b"="))
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


def decode_image(data: bytes, max_pixels: int, frame: int = 0) -> Image.Image:
    """Return one frame in RGB: rotated as EXIF says, transparency over white, deep gray scaled to 8 bits.

    The size in the header is checked before anything is decoded, with a lower limit for formats that are slow or take
    much memory; Pillow's own limit of 179 million pixels also applies. Raise InvalidImage if the image cannot be
    decoded, is too large, or takes too long.
    """
    if not data:
        raise InvalidImage("the image is empty")
    try:
        with _pillow_warnings:
            file = _BoundedFile(data)
            _check_icon(file, max_pixels)
            with Image.open(file, formats=_FORMATS) as image:
                if is_camera_raw(image):
                    raise InvalidImage("the image is a camera's raw file; convert it to JPEG or PNG first")
                if frame:  # a PSD's first frame is number 1
                    image.seek(frame)
                _check_size(image, data, max_pixels)
                image.load()
                try:  # Pillow rotates TIFF while loading
                    orientation = image.getexif().get(ExifTags.Base.Orientation)
                except Exception:  # as many kinds as for damaged pixels, and no reason to refuse the image
                    orientation = None
            rgb = _rgb(image)
            del image, file  # before the memory for the rotated image is needed
            return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb
    except InvalidImage:
        raise
    except UnidentifiedImageError as error:
        if kind := found_format(data):
            raise InvalidImage(f"the image cannot be read: it is {kind}") from error
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


class _BoundedFile(BytesIO):
    """An encoded image that can be read for MAX_SECONDS, and only a few times over.

    Hostile files consist of millions of chunks, or refer to the same bytes again and again.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._end = time.thread_time() + MAX_SECONDS
        self._left = 4 * len(data) + 2**20

    def read(self, size: int | None = -1, /) -> bytes:
        return self._checked(super().read(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._checked(super().readline(size))

    def _checked(self, part: bytes) -> bytes:
        self._left -= len(part)
        if self._left < 0:
            raise InvalidImage("the image is damaged: it refers to the same data many times")
        if time.thread_time() > self._end:
            raise InvalidImage("the image takes too long to decode; send it as PNG or JPEG")
        return part


def _check_size(image: Image.Image, data: bytes, max_pixels: int) -> None:
    width, height = image.size
    tiles = getattr(image, "tile", [])
    cost = _COSTS.get(image.format or "", 1)
    if image.format in ("JPEG", "MPO"):
        cost = max(1, data.count(b"\xff\xda") // _CHEAP_SCANS)
    elif any(tile.codec_name in Image.DECODERS for tile in tiles):
        cost = _COST_IN_PYTHON
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(f"the image has {width} x {height} pixels; at most {MAX_SIDE:,} are accepted on a side")
    if width * height * cost > max_pixels:
        slow = f" in a {image.format} file as slow to decode as this one" if cost > 1 else ""
        raise InvalidImage(
            f"the image has {width} x {height} pixels; at most {max_pixels // cost:,} are accepted{slow}"
        )
    extents = [tile.extents or (0, 0, width, height) for tile in tiles]
    if sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in extents) > width * height * len(image.getbands()):
        raise InvalidImage("the image is damaged: its tiles overlap")


def _check_icon(file: BytesIO, max_pixels: int) -> None:
    """Raise InvalidImage if an image inside an ICO or ICNS is too large: its size may differ from the icon's header."""
    data, contents = file.getvalue(), []
    if data.startswith(b"\0\0\1\0"):
        contents = [data[IcoImagePlugin.IcoFile(file).entry[0].offset :]]
    elif data.startswith(b"icns"):
        icon = IcnsImagePlugin.IcnsFile(file)
        spans = [icon.dct[code] for code, _ in icon.SIZES[icon.bestsize()] if code in icon.dct]
        contents = [data[start : start + length] for start, length in spans]
    for content in contents:
        try:
            with Image.open(_BoundedFile(content), formats=("PNG", "JPEG2000", "DIB")) as image:
                _check_size(image, content, max_pixels)
        except UnidentifiedImageError:
            continue  # an old format, as large as the icon's header says


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB. Converting in bands takes no memory but for the image and the result."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    result = Image.new("RGB", image.size, "white")
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    black, white = _gray_range(image) if deep else (0.0, 255.0)
    transparent = image.mode in _TRANSPARENT_MODES and image.has_transparency_data
    for top, band in _bands(image):
        mask = None
        if deep:
            band = Image.fromarray(_eight_bits(np.asarray(band), black, white))
        elif transparent:
            straight = band.convert("LA") if band.mode == "La" else band  # premultiplied gray converts to nothing else
            band = straight.convert("RGBA")
            mask = band.getchannel("A")
        elif band.mode == "LAB":
            converted = ImageCms.profileToProfile(band, *_LAB_TO_SRGB, outputMode="RGB")
            assert converted is not None  # only in-place conversion returns None
            band = converted
        result.paste(band, (0, top), mask)
    return result


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the image of each band."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _gray_range(image: Image.Image) -> tuple[float, float]:
    """Return the values of deep gray that become black and white.

    White is the smallest common full scale that contains the brightest value, as 12-bit scans come in 16-bit files.
    If none does, or with negative values, the image's range is stretched.
    """
    low = high = 0.0
    for _top, band in _bands(image):
        gray = np.asarray(band)
        finite = np.isfinite(gray)
        low = min(low, float(gray.min(initial=0, where=finite)))
        high = max(high, float(gray.max(initial=0, where=finite)))
    scales = _FLOAT_SCALES if image.mode == "F" else _INTEGER_SCALES
    return low, high if low < 0 else next((scale for scale in scales if high <= scale), high)


def _eight_bits(values: NDArray[np.generic], black: float, white: float) -> NDArray[np.uint8]:
    gray, factor = values.astype(np.float32), 255 / (white - black)
    with np.errstate(all="ignore"):
        gray *= factor
        gray -= black * factor
    np.nan_to_num(gray, copy=False, nan=0.0)
    return np.rint(gray.clip(0, 255, out=gray), out=gray).astype(np.uint8)
