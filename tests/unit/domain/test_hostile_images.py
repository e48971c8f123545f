"""Files that are damaged, claim an absurd size or are no images give an image or InvalidImage, and nothing else."""

from __future__ import annotations

import concurrent.futures
import functools
import resource
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from florence2.errors import InvalidImage
from florence2.images import decode_image
from tests.reference import shared
from tests.unit.domain.image_files import LIMIT, colorful, encode, icns, ico


def test_the_pixel_limit_is_exact():
    """An image at the limit passes, one pixel more does not."""
    data = encode(Image.new("L", (10, 10)))
    assert decode_image(data, 100).size == (10, 10)
    with pytest.raises(InvalidImage, match="10 x 10 pixels; at most 99 "):
        decode_image(data, 99)


def png_header(width, height, bits=8):
    """A PNG that claims a size and ends where its pixels should begin."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">II", zlib.crc32(chunk), 99)
        + b"IDAT"
    )


@pytest.mark.parametrize("wrap", [bytes, icns, ico])
@pytest.mark.parametrize("side", [1001, 40_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(wrap, side):
    """No pixel is decoded: these files have none. Icons hide the true size one level down."""
    with pytest.raises(InvalidImage, match="pixels"):
        decode_image(wrap(png_header(side, side)), LIMIT)


@pytest.mark.parametrize("side", [16, 128])
def test_icons_within_the_limit_are_read(side):
    """This holds even if the image inside has another size than the icon states."""
    image = colorful(side, side)
    for wrap in (icns, ico):
        np.testing.assert_array_equal(np.asarray(decode_image(wrap(encode(image)), LIMIT)), np.asarray(image))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"P6\n9 9\n255\n",
    ],
)
def test_bytes_that_are_no_image_are_refused(data):
    """So is PostScript, which Pillow would run as a program."""
    with pytest.raises(InvalidImage, match="image"):
        decode_image(data, LIMIT)


FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "WEBP",
    "TIFF",
    "ICO",
    "ICNS",
    "JPEG2000",
    "AVIF",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "DDS",
    "QOI",
]


@functools.cache
def small_file(format):
    return encode(colorful(16, 16), format)


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
def test_damaged_files_decode_or_are_refused(format, data):
    """Truncated or overwritten anywhere, every format gives an image or InvalidImage with one sentence."""
    damaged = bytearray(small_file(format))
    for _ in range(data.draw(st.integers(0, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        image = decode_image(damaged, LIMIT)
    except InvalidImage as error:
        assert str(error).isprintable() and "object at" not in str(error)
    else:
        assert image.mode == "RGB" and 0 < image.width * image.height <= LIMIT


def pillow_loads(path):
    try:
        with Image.open(path) as image:
            image.load()
            return image.format != "EPS"
    except Exception:
        return False


@pytest.mark.filterwarnings("ignore")  # of `pillow_loads`
def test_pillows_own_odd_images_decode_or_are_refused():
    """These files made Pillow crash or hang, or have odd modes. Each takes little time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(shared("samples/odd_images").iterdir()):
        start = time.process_time()
        try:
            assert decode_image(path.read_bytes(), 20_000_000).mode == "RGB", path.name
        except InvalidImage:
            assert not pillow_loads(path), path.name
        assert time.process_time() - start < 2, path.name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024  # kilobytes


def test_no_warning_leaves_the_decoder():
    """This holds even if the program turned warnings into errors. Its filters stay as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        decode_image(ico(encode(colorful(20, 20))), LIMIT)  # Pillow: "Image was not the expected size"
        assert warnings.filters == filters


def test_threads_decode_side_by_side():
    """Their images are right, and the warning filters are as before, no matter which thread finishes last."""
    files = [ico(encode(colorful(side, side))) for side in range(8, 40)] * 8
    filters = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda data: decode_image(data, LIMIT), files))
    assert [image.width for image in images] == [*range(8, 40)] * 8
    assert warnings.filters == filters
