"""Compare image decoding with Pillow's and transformers' own operations, and feed it damaged and hostile bytes."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import functools
import io
import resource
import struct
import time
import warnings
import zlib

import numpy as np
import PIL
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from florence2.config import ImageConfig
from florence2.errors import InvalidImage
from florence2.images import decode_image, encoded_image, to_pixels
from tests.reference import CHECKPOINTS, shared

LIMIT = 1_000_000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ramp(width=32, height=8):
    """Return a gray ramp from black to white, left to right, with equal rows."""
    return np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))


def encode(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decoded(image, format="PNG", **options):
    """Return the image after encoding and decoding: uint8 [H, W, 3]."""
    return np.asarray(decode_image(encode(image, format, **options), LIMIT))


def colorful(width=24, height=16):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 10, y * 15, (x + y) * 6], axis=-1).astype(np.uint8))


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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_opaque_images_decode_as_pillow_converts_them(mode):
    """Every mode of PNG."""
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
    """What the decoder gives is converted and not otherwise touched."""
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
    """By the scale their values suggest."""
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
    """Animations, page by page."""
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        frames = {"save_all": True, "append_images": [second]} | ({"lossless": True} if format == "WEBP" else {})
        np.testing.assert_array_equal(decoded(first, format, **frames), np.asarray(first))


def test_the_pixel_limit_is_exact():
    """An image at the limit passes, one pixel more does not."""
    data = encode(Image.new("L", (10, 10)))
    assert decode_image(data, 100).size == (10, 10)
    with pytest.raises(InvalidImage, match="10 x 10 pixels; at most 99 "):
        decode_image(data, 99)


def icns(payload):
    return b"icns" + struct.pack(">I", 16 + len(payload)) + b"ic07" + struct.pack(">I", 8 + len(payload)) + payload


def ico(payload):
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(payload), 22) + payload


@pytest.mark.parametrize("wrap", [bytes, icns, ico])
@pytest.mark.parametrize("side", [1001, 40_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(wrap, side):
    """Without a pixel being decoded: these files hold none. Icons hide the true size one level down."""
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
    """PostScript, which would be a program to run, among them."""
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
    """Orientations, modes, bombs, crashes and timeouts that Pillow has met: each in a moment and in little memory."""
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
    """This holds even if the program turned warnings into errors, and its filters are as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        decode_image(ico(encode(colorful(20, 20))), LIMIT)  # Pillow: "Image was not the expected size"
        assert warnings.filters == filters


def test_threads_decode_side_by_side():
    """All give equal images, and the warning filters are as before, no matter which thread finished last."""
    files = [ico(encode(colorful(side, side))) for side in range(8, 40)] * 8
    filters = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda data: decode_image(data, LIMIT), files))
    assert [image.width for image in images] == [*range(8, 40)] * 8
    assert warnings.filters == filters


IMAGE = encode(colorful())


@pytest.mark.parametrize(
    "data",
    [
        IMAGE,
        base64.b64encode(IMAGE),
        base64.encodebytes(IMAGE),
        b" \r\n" + base64.urlsafe_b64encode(IMAGE).rstrip(b"=") + b"\n",
        b"data:image/png;base64," + base64.b64encode(IMAGE),
        b"\nDATA:image/png;charset=x;BASE64 ,\n" + base64.encodebytes(IMAGE),
        b"data:;base64," + base64.b64encode(IMAGE).replace(b"+", b"%2B").replace(b"/", b"%2f"),
        b"data:image/png," + b"".join(b"%%%02x" % byte for byte in IMAGE),
        b"data:," + b"".join(b"%%%02X" % byte if byte in b"%=\r\n" else bytes([byte]) for byte in IMAGE),
    ],
)
def test_an_image_may_come_as_bytes_base64_or_a_data_url(data):
    """All give the encoded image itself."""
    assert encoded_image(data) == IMAGE


@given(st.binary())
def test_base64_of_anything_is_read_in_both_alphabets(data):
    """With and without padding."""
    for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        assert encoded_image(encoded) == encoded_image(encoded.rstrip(b"=")) == data


@given(
    st.binary()
    | st.text("abc=+/-_ \n,;:%").map(str.encode)
    | st.just(b"data:")
    | st.binary().map(b"data:;base64,".__add__)
)
def test_any_bytes_give_bytes_or_are_refused(data):
    """No other exception."""
    try:
        assert isinstance(encoded_image(data), bytes)
    except InvalidImage as error:
        assert "base64" in str(error) or "data URL" in str(error)


RUNS = [
    b"A",
    b"=",
    b" ",
    b"%",
    b"%41",
    b"%4",
    b"-",
    b"a:",
    b"a://",
    b"P1 ",
    b"data:",
    b"data:;base64,",
    b";base64",
    b",",
]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(RUNS), st.sampled_from([1, 2, 1_000_000])), min_size=1, max_size=4))
@example([(b"data:,", 1), (b"%41", 8_000_000)])
@example([(b"data:;base64,", 1), (b"%", 24_000_000)])
def test_no_text_takes_long_to_unwrap(runs):
    """Megabytes of anything, in linear time: a data URL with millions of escapes took 14 seconds."""
    data, start = b"".join(part * times for part, times in runs), time.thread_time()
    with contextlib.suppress(InvalidImage):
        encoded_image(data)
    assert time.thread_time() - start < 2


def test_plain_text_images_are_not_taken_for_base64():
    """A plain PBM consists of letters of the base64 alphabet and spaces."""
    data = b"P1\n4 2\n0 1 0 1\n1 0 1 0\n"
    assert encoded_image(data) == data
    assert decode_image(data, LIMIT).size == (4, 2)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@settings(max_examples=15)
@given(st.data())
def test_pixels_are_those_of_the_checkpoints_processor(checkpoint, data):
    """They are equal bit for bit, before rescaling and normalization."""
    theirs = CLIPImageProcessorPil.from_pretrained(checkpoint)
    width, height = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    [expected] = theirs(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    config = ImageConfig(theirs.size["height"], theirs.size["width"], MEAN, STD, int(theirs.resample), 37)
    np.testing.assert_array_equal(to_pixels(image, config), expected.transpose(1, 2, 0))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@settings(max_examples=12, deadline=None)
@given(
    format=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]),
    mode=st.sampled_from(["RGB", "L"]),
    size=st.one_of(
        st.tuples(st.integers(1, 400), st.integers(1, 400)),
        st.sampled_from([(1, 1), (1, 3000), (3000, 1), (2, 1999), (768, 768), (769, 767), (1537, 64)]),
    ),
    orientation=st.integers(1, 8),
)
def test_an_encoded_image_becomes_the_processors_pixels(checkpoint, format, mode, size, orientation):
    """From bytes on, turned by EXIF, of odd sizes: what Pillow and the processor make of it, bit for bit."""
    theirs = CLIPImageProcessorPil.from_pretrained(checkpoint)
    noise = np.random.default_rng(sum(size)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(noise).convert(mode).save(file, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    [expected] = theirs(upright, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    config = ImageConfig(theirs.size["height"], theirs.size["width"], MEAN, STD, int(theirs.resample), 37)
    pixels = to_pixels(decode_image(file.getvalue(), LIMIT), config)
    np.testing.assert_array_equal(pixels, expected.transpose(1, 2, 0))


def test_height_and_width_are_not_confused():
    """A model may take images that are not square."""
    pixels = to_pixels(colorful(), ImageConfig(32, 64, MEAN, STD, 3, 9))
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.uint8


def test_a_psd_is_read_from_its_first_frame():
    """Pillow counts its frames from 1."""
    header = b"8BPS\0\1" + bytes(6) + b"\0\3" + (2).to_bytes(4, "big") + (4).to_bytes(4, "big") + b"\0\x08\0\3"
    data = header + bytes(12) + b"\0\0" + bytes([10] * 8 + [20] * 8 + [30] * 8)
    image = decode_image(data, LIMIT)
    assert image.size == (4, 2) and image.getpixel((3, 1)) == (10, 20, 30)
