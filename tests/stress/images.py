"""Good, unusual and damaged images, and requests about them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

ENSEMBLE = "florence2_ensemble"


def noise(chance: random.Random, width: int, height: int, bands: int = 3) -> Image.Image:
    """Return coarse noise, which compresses like a photograph."""
    coarse = np.frombuffer(chance.randbytes(16 * 16 * bands), np.uint8).reshape(16, 16, bands)
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[bands]
    return Image.fromarray(coarse.squeeze(), mode).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG with a valid header and a few zeros as its data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def truncated(chance: random.Random) -> bytes:
    whole = good(chance, chance.choice(("PNG", "JPEG", "WEBP")))
    return whole[: chance.randrange(1, len(whole) // 2)]


def flipped(chance: random.Random) -> bytes:
    data = bytearray(good(chance, chance.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))))
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def good(chance: random.Random, kind: str = "PNG") -> bytes:
    return encoded(noise(chance, chance.randint(64, 400), chance.randint(64, 400)), kind)


def animated(chance: random.Random) -> bytes:
    frames = [noise(chance, 80, 60) for _ in range(5)]
    return encoded(frames[0], chance.choice(("GIF", "WEBP")), save_all=True, append_images=frames[1:])


def sixteen_bit(chance: random.Random) -> bytes:
    gray = np.frombuffer(chance.randbytes(2 * 90 * 70), np.uint16).reshape(70, 90)
    return encoded(Image.fromarray(gray), chance.choice(("PNG", "TIFF")))


Make = Callable[[random.Random], bytes]
DAMAGED: dict[str, Make] = {
    "empty": lambda chance: b"",
    "random bytes": lambda chance: b"\xff" + chance.randbytes(chance.randint(1, 5000)),
    "web page": lambda chance: b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "address": lambda chance: b"https://example.org/image.jpg",
    "damaged base64": lambda chance: b"data:image/png;base64,iVBORw0KGgo!!!",
    "PDF": lambda chance: b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n" + chance.randbytes(200),
    "SVG": lambda chance: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "PostScript": lambda chance: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "zip": lambda chance: b"PK\x03\x04" + chance.randbytes(300),
    "truncated": truncated,
    "bomb": lambda chance: png_that_claims(chance.randint(20_000, 60_000), chance.randint(20_000, 60_000)),
    "more than there can be": lambda chance: png_that_claims(2**31 - 1, 2**31 - 1),
    "no width": lambda chance: png_that_claims(0, 100),
    "header without data": lambda chance: png_that_claims(2000, 2000),
}
UNUSUAL: dict[str, Make] = {
    "CMYK": lambda chance: encoded(noise(chance, 120, 90, 4), "JPEG"),
    "16 bit": sixteen_bit,
    "animated": animated,
    "one bit": lambda chance: encoded(noise(chance, 50, 40, 1).convert("1")),
    "palette": lambda chance: encoded(noise(chance, 50, 40).quantize(8), "GIF"),
    "transparent": lambda chance: encoded(noise(chance, 50, 40).convert("RGBA"), "WEBP"),
    "one pixel": lambda chance: encoded(noise(chance, 1, 1)),
    "a line": lambda chance: encoded(noise(chance, 5000, 1)),
    "progressive": lambda chance: encoded(noise(chance, 300, 200), "JPEG", progressive=True),
    "large": lambda chance: encoded(noise(chance, 4000, 3000), "JPEG"),
}


def request(image: bytes, task: str, **more: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the input tensors of a request."""
    return {"IMAGE": np.array([image], np.object_), "TASK": np.array([task.encode()], np.object_), **more}
