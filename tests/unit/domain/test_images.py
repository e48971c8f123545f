"""Compare image decoding with Pillow's own operations."""

from __future__ import annotations

import io

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from florence2.images import decode_image
from tests.unit.domain.image_files import LIMIT, colorful, encode


def ramp(width=32, height=8):
    """Return a gray ramp from black to white, left to right, with equal rows."""
    return np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))


def decoded(image, format="PNG", **options):
    """Return the image after encoding and decoding: uint8 [H, W, 3]."""
    return np.asarray(decode_image(encode(image, format, **options), LIMIT))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_opaque_images_decode_as_pillow_converts_them(mode):
    """These are the modes of PNG."""
    image = colorful().convert(mode)
    np.testing.assert_array_equal(decoded(image), np.asarray(image.convert("RGB")))


SINCE_PILLOW_13 = pytest.mark.skipif(PIL.__version__ < "13", reason="Pillow 12 cannot read what it writes here")


@pytest.mark.parametrize(
    "mode,format",
    [
        ("CMYK", "TIFF"),
        pytest.param("YCbCr", "TIFF", marks=SINCE_PILLOW_13),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "AVIF"),
    ],
)
def test_other_color_spaces_and_formats_decode_as_pillow_converts_them(mode, format):
    """Nothing else changes the pixels."""
    data = encode(colorful().convert(mode), format)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode_image(data, LIMIT)), np.asarray(expected))


def test_lab_is_converted_by_its_meaning():
    """Pillow cannot convert LAB directly: half lightness is middle gray."""
    image = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (128, 128, 128)])
    np.testing.assert_allclose(decoded(image, "TIFF"), 119, atol=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
    """The hidden color of transparent pixels does not show; half-transparent black is middle gray."""
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.putpixel((2, 0), (0, 0, 0, 0))
    np.testing.assert_array_equal(decoded(image.convert(mode))[0, :, 0], [0, 127, 255])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_color_is_white(mode):
    """PNG's tRNS makes one color of an otherwise opaque image transparent."""
    image = Image.new("L", (2, 1), 255).convert(mode)
    image.putpixel((0, 0), (0, 0, 0) if mode == "RGB" else 0)
    assert decoded(image, transparency=(0, 0, 0) if mode == "RGB" else 0).min() == 255


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_gray_is_scaled_to_eight_bits(bits):
    """Scans of 10 to 16 bits arrive in 16-bit files; none comes out black or clipped to white."""
    deep = (ramp() / 255 * (2**bits - 1)).round().astype(np.uint16)
    for format in ("PNG", "TIFF", "JPEG2000"):
        np.testing.assert_array_equal(decoded(Image.fromarray(deep), format)[:, :, 0], ramp())


@pytest.mark.parametrize(
    "values,expected",
    [
        pytest.param(ramp() / 255, ramp(), id="0 to 1"),
        pytest.param(ramp() / 255 * 0.5, ramp() / 2, id="dark, 0 to 0.5"),
        pytest.param(ramp() / 255 * 4, ramp(), id="high dynamic range, 0 to 4"),
        pytest.param(ramp(), ramp(), id="0 to 255"),
        pytest.param(ramp() * 257.0, ramp(), id="0 to 65535"),
        pytest.param(ramp() * 1e6, ramp(), id="beyond every scale"),
        pytest.param(ramp() / 255 - 0.5, ramp(), id="negative"),
        pytest.param(ramp() / 255 * 6e38 - 3e38, ramp(), id="as large as float32 goes"),
        pytest.param(np.where(ramp() == 255, np.inf, ramp() / 255), ramp(), id="infinite"),
        pytest.param(np.where(ramp() == 0, np.nan, ramp() / 255), ramp(), id="not a number"),
        pytest.param(np.full((2, 2), np.nan), np.zeros((2, 2)), id="nothing but not a number"),
        pytest.param(np.zeros((2, 2)), np.zeros((2, 2)), id="black"),
    ],
)
def test_float_images_are_scaled_to_eight_bits(values, expected):
    """The values suggest the scale: 0 to 1, to 255 or to 65535, or else their own range."""
    result = decoded(Image.fromarray(values.astype(np.float32)), "TIFF")[:, :, 0]
    np.testing.assert_allclose(result, expected, atol=0.51)


def test_whole_numbers_of_thirty_two_bits_are_scaled_to_eight():
    """Below zero there is no usual scale, so the image's own range is stretched."""
    for values in (ramp(), ramp().astype(np.int32) * 257, ramp().astype(np.int32) * 5_000_000, ramp() * 9.0 - 1000):
        result = decoded(Image.fromarray(values.astype(np.int32)), "TIFF")[:, :, 0]
        np.testing.assert_allclose(result, ramp(), atol=0.51 if values.min() >= 0 else 29)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_exif_says(orientation, format):
    """The result is that of Pillow's `exif_transpose`: coordinates refer to the image as displayed."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(colorful(), format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(np.asarray(decode_image(data, LIMIT)), np.asarray(expected))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_damaged_exif_leaves_the_image_as_it_is(exif):
    """The pixels are fine, so the client gets an answer."""
    np.testing.assert_array_equal(decoded(colorful(), exif=exif), np.asarray(colorful()))


def test_of_several_frames_the_first_is_taken():
    """This holds for animations and for pages of a TIFF."""
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        frames = {"save_all": True, "append_images": [second]} | ({"lossless": True} if format == "WEBP" else {})
        np.testing.assert_array_equal(decoded(first, format, **frames), np.asarray(first))


def test_a_psd_is_read_from_its_first_frame():
    """Pillow counts its frames from 1."""
    header = b"8BPS\0\1" + bytes(6) + b"\0\3" + (2).to_bytes(4, "big") + (4).to_bytes(4, "big") + b"\0\x08\0\3"
    data = header + bytes(12) + b"\0\0" + bytes([10] * 8 + [20] * 8 + [30] * 8)
    image = decode_image(data, LIMIT)
    assert image.size == (4, 2) and image.getpixel((3, 1)) == (10, 20, 30)
