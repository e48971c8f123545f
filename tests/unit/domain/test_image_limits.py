"""Decoding takes bounded time and memory, whatever a file of a few kilobytes or megabytes claims or repeats."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import time
import zlib

import pytest
from PIL import Image

from florence2 import images
from florence2.errors import InvalidImage
from florence2.images import MAX_SIDE, decode_image
from tests.unit.domain.image_files import encode, icns


def bmp_rle(width, height, data):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + head + bytes(1024) + data


def many_scans(image, scans):
    """Return a progressive JPEG that repeats its last scan, with which a few kilobytes occupy a decoder for minutes."""
    data = encode(image, "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


SLOW = {
    "JPEG 2000": (10, lambda image: encode(image, "JPEG2000")),
    "JPEG 2000 in an icon": (10, lambda image: icns(encode(image, "JPEG2000"))),
    "WebP": (2, lambda image: encode(image, "WEBP")),
    "AVIF": (2, lambda image: encode(image, "AVIF")),
    "QOI": (25, lambda image: encode(image, "QOI")),
    "plain PGM": (25, lambda image: b"P2 128 128 255 " + b"0 " * 128 * 128),
    "BMP with run lengths": (25, lambda image: bmp_rle(128, 128, b"\x80\0\0\0" * 128 + b"\0\1")),
    "JPEG of a hundred scans": (5, lambda image: many_scans(image, 90)),
}


@pytest.mark.parametrize("kind", SLOW)
def test_slow_formats_have_a_lower_limit(kind):
    """It is exact, too: so many times as long and as much memory a pixel takes than in PNG or JPEG."""
    cost, made = SLOW[kind]
    data, pixels = made(Image.new("RGB", (128, 128))), 128 * 128
    assert decode_image(data, pixels * cost).size == (128, 128)
    with pytest.raises(InvalidImage, match=r"at most [\d,]+ are accepted in a \w+ file as slow to decode"):
        decode_image(data, pixels * cost - 1)


def test_sides_are_limited():
    """Resizing takes memory for each pixel of a side: gigabytes for an image of a hundred million columns."""
    with pytest.raises(InvalidImage, match="on a side"):
        decode_image(encode(Image.new("1", (MAX_SIDE + 1, 1))), 10**6)
    assert decode_image(encode(Image.new("1", (1, MAX_SIDE))), 10**6).height == MAX_SIDE


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(tags, data=b""):
    """Return a TIFF with its directory after `data`, which begins at byte 8."""
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<L", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def overlapping_strips(side=8_000, strips=1000):
    """Return a black TIFF whose upper half is named a thousand times."""
    pixels, offsets = bytes(side // 8 * side // 2), struct.pack("<L", 8) * strips
    counts = struct.pack("<L", len(pixels)) * strips
    sizes = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 1)]
    strip = [(273, 4, strips, 8 + len(pixels)), (277, 3, 1, 1), (278, 4, 1, side // 2)]
    return tiff([*sizes, *strip, (279, 4, strips, 8 + len(pixels) + len(offsets))], pixels + offsets + counts)


TINY = {format: encode(Image.new("L", (8, 8)), format) for format in ("PNG", "JPEG")}
ENDLESS = {
    "chunks of a PNG": lambda: TINY["PNG"][:33] + chunk(b"abCd") * 1_000_000 + TINY["PNG"][33:],
    "segments of a JPEG": lambda: TINY["JPEG"][:2] + b"\xff\xfe\0\2" * 3_000_000 + TINY["JPEG"][2:],
    "extensions of a GIF": lambda: b"GIF89a\x08\0\x08\0\0\0\0" + b"!\xfe\0" * 4_000_000 + b";",
    "lines of an IM": lambda: b"Image type: L\r\n" + b"A:1\r\n" * 2_000_000,
    "comment of a PPM": lambda: b"P6\n#" + b"x" * 12_000_000,
    "blocks of an icon": lambda: b"icns\0\xf4\x24\0" + (b"abcd" + struct.pack(">I", 8)) * 2_000_000,
    "a TIFF's tags with the same data": lambda: tiff([(n, 1, 5_000_000, 8) for n in range(999)], bytes(5_000_000)),
    "a TIFF's strips with the same data": overlapping_strips,
    "a scan of a JPEG": lambda: many_scans(Image.new("L", (5000, 5000)), 5000),
    "skipped rows of a BMP": lambda: bmp_rle(2_000_000, 2, b"\0\2\xff\xff" * 100),
    "DDS without pixels": lambda: (
        b"DDS " + struct.pack("<7I44x", 124, 0x1007, 5000, 5000, 0, 0, 0)
        + struct.pack("<2I4s5I", 32, 0x40, bytes(4), 24, 0xFF0000, 0xFF00, 0xFF, 0)
        + struct.pack("<5I", 0x1000, 0, 0, 0, 0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_files_are_refused(what, monkeypatch):
    """In bounded time and memory, although no header states how long they take."""
    monkeypatch.setattr(images, "MAX_SECONDS", 1.0)
    data = ENDLESS[what]()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(InvalidImage):
        decode_image(data, 100_000_000)
    assert time.thread_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # kilobytes


MEMORY = {
    **{f"PNG {mode}": (9.5, mode, "PNG", {}) for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")},
    **{f"TIFF {mode}": (9.5, mode, "TIFF", {}) for mode in ("CMYK", "LAB", "I", "F")},
    "JPEG rotated": (9.5, "RGB", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
    "JPEG progressive": (11.5, "RGB", "JPEG", {"progressive": True, "subsampling": "4:4:4"}),
    "WebP": (2 * 9.5, "RGBA", "WEBP", {}),
    "AVIF": (2 * 9.5, "RGBA", "AVIF", {"speed": 10}),
    "JPEG 2000": (10 * 9.5, "RGBA", "JPEG2000", {}),
}  # fmt: skip
MEASURE = """
import resource, sys
from florence2.images import decode_image
data, before = open(sys.argv[1], "rb").read(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_image(data, 10**9)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("what", MEMORY)
def test_memory_is_what_the_operators_guide_promises(what, tmp_path):
    """At most 9 bytes per pixel that a format may have, 11 for a progressive JPEG, and a few megabytes."""
    most, mode, format, options = MEMORY[what]
    side = 3000
    (tmp_path / "image").write_bytes(encode(Image.new(mode, (side, side)), format, **options))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "image")], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < most * side * side + 16 * 2**20
