"""What is no readable image is named for what it is, whatever its name says."""

from __future__ import annotations

import io
import re
import struct
import time
import zipfile

import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from florence2.errors import InvalidImage
from florence2.formats import HEAD, found_format
from florence2.images import decode_image


def ftyp(*brands: bytes) -> bytes:
    content = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands)
    return struct.pack(">I", len(content) + 4) + content + b"\0\0\0\x08mdat"


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("word/document.xml", "<x/>")
    return buffer.getvalue()


def tiff(**tags: int) -> bytes:
    directory = ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[int(tag.strip("t"))] = value
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "TIFF", tiffinfo=directory)
    return buffer.getvalue()


def sensor_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "TIFF")
    gray, array = struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 32803)
    assert gray in buffer.getvalue()
    return buffer.getvalue().replace(gray, array)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7\n1 0 obj", "a PDF document"),
        (b"\n\n%PDF-1.4", "a PDF document"),
        (b"<!DOCTYPE html><html><body><svg></svg>", "an HTML page"),
        (b"\xef\xbb\xbf  <HTML lang=en>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "an SVG drawing"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b'{"error": "not found"}', "JSON or other text"),
        (b"404 page not found\n", "plain text"),
        ("\u732b\u306e\u5199\u771f ".encode() * 2000, "plain text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (archive(), "a ZIP archive or an Office document"),
        (ftyp(b"heic", b"mif1"), "a HEIC photo"),
        (ftyp(b"mif1", b"heic"), "a HEIC photo"),
        (ftyp(b"mif1", b"avif"), "an AVIF image"),
        (ftyp(b"isom", b"mp41"), "a video (MP4 or QuickTime)"),
        (ftyp(b"qt  "), "a video (MP4 or QuickTime)"),
        (ftyp(b"crx "), "a camera's raw file (Canon CR3)"),
        (b"RIFF\x24\0\0\0AVI LIST", "a video (AVI)"),
        (b"\x1aE\xdf\xa3\x01", "a video (Matroska or WebM)"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw file (Fujifilm RAF)"),
        (b"IIRO\x08\0\0\0", "a camera's raw file (Olympus ORF)"),
        (sensor_tiff(), "such as a camera's raw file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript or EPS file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\x1f\x8b\x08\0", "a gzip file"),
        (b"\0" * 100, "nothing but zero bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_read_is_named(data, kind):
    assert kind in str(found_format(data))
    if "AVIF" not in kind:
        with pytest.raises(InvalidImage, match=re.escape(kind)):
            decode_image(data, 100)


@pytest.mark.parametrize(
    "data", [tiff(t254=1, t330=8), tiff(t50706=0x01040000), tiff(t50752=1)], ids=["preview", "DNG", "CR2"]
)
def test_the_preview_of_a_raw_file_is_not_taken_for_the_image(data):
    with pytest.raises(InvalidImage, match="a camera's raw file; convert it to JPEG or PNG first"):
        decode_image(data, 100)


def test_damaged_images_are_not_called_something_else():
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, name)
        assert found_format(buffer.getvalue()) is None


@pytest.mark.parametrize("piece", [b"<", b"<?xml", b" ", b"<!--", b"<svg", b"{", b"a", b"\0", b"\xff", b"ftyp"])
def test_naming_takes_no_time(piece):
    data = piece * (50_000_000 // len(piece))
    start = time.perf_counter()
    found_format(data)
    assert time.perf_counter() - start < 0.5
    assert len(data) > HEAD
