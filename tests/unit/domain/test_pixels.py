"""Compare the pixels that the model gets with those of transformers' processor."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from florence2.config import ImageConfig
from florence2.images import decode_image, to_pixels
from tests.reference import CHECKPOINTS
from tests.unit.domain.image_files import LIMIT, colorful

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    pixels = to_pixels(decode_image(file.getvalue(), 2 * LIMIT), config)  # a pixel of a WebP counts as two
    np.testing.assert_array_equal(pixels, expected.transpose(1, 2, 0))


def test_height_and_width_are_not_confused():
    """A model may take images that are not square."""
    pixels = to_pixels(colorful(), ImageConfig(32, 64, MEAN, STD, 3, 9))
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.uint8
