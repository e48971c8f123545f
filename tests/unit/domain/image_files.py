"""Image files for tests of decoding."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

LIMIT = 1_000_000  # pixels


def encode(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def colorful(width=24, height=16):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 10, y * 15, (x + y) * 6], axis=-1).astype(np.uint8))


def icns(payload):
    return b"icns" + struct.pack(">I", 16 + len(payload)) + b"ic07" + struct.pack(">I", 8 + len(payload)) + payload


def ico(payload):
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(payload), 22) + payload
