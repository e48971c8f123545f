"""Location bins against transformers' `quantize` and `dequantize`."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from florence2.locations import LOCATION_TOKEN, location_of, region_tokens, to_bin, to_pixel
from tests.reference import processor

extents = st.integers(1, 100_000)
bins = st.integers(0, 999)


@given(bins, extents)
def test_the_middle_of_a_bin_lies_in_that_bin(location, extent):
    """Bins survive the conversion to pixels and back at every image size, even with less than a pixel per bin."""
    assert to_bin(to_pixel(location, extent), extent) == location


@given(st.floats(-10, 110_000), extents)
def test_bins_are_those_of_transformers(pixel, extent):
    """Equal to `quantize`, except so close to a bin's edge that its float32 cannot tell the sides apart."""
    position = pixel * 1000 / extent
    assume(abs(position - round(position)) > 1e-3)
    theirs = processor().post_processor.quantize(torch.tensor([[pixel, pixel]]), (extent, extent))
    assert to_bin(pixel, extent) == theirs[0, 0].item()


@given(bins, st.integers(1, 20_000))
def test_pixels_are_those_of_transformers_before_it_truncates_them(location, extent):
    """`dequantize` gives the whole pixel below ours."""
    theirs = processor().post_processor.dequantize(torch.tensor([[location, location]]), (extent, extent))
    assert theirs[0, 0].item() - 1e-2 <= to_pixel(location, extent) < theirs[0, 0].item() + 1 + 1e-2


@pytest.mark.parametrize("extent", [640, 700, 1000, 4032])
def test_whole_pixels_on_the_edge_of_a_bin_belong_to_the_bin_they_open(extent):
    """Integer pixels are binned exactly, where 63 / (700 / 1000) in floating point falls short of 90."""
    assert [to_bin(x, extent) for x in range(extent)] == [x * 1000 // extent for x in range(extent)]


def test_coordinates_outside_the_image_are_clamped():
    """The first and last bin take what lies beyond."""
    assert (to_bin(-5, 640), to_bin(640, 640), to_bin(1e308, 640)) == (0, 999, 999)
    assert to_pixel(999, 640) == 639.68


@pytest.mark.parametrize(
    ("number", "location"),
    [
        *[("0", 0), ("00", 0), ("007", 7), ("999", 999), ("0" * 5000 + "12", 12)],
        *[("1000", 999), ("01000", 999), ("1234", 999), ("9" * 5000, 999), ("-1", 0), ("-0", 0), ("-12", 0)],
    ],
)
def test_a_token_names_the_nearest_bin(number, location):
    """Models spell numbers that no token has."""
    assert re.fullmatch(LOCATION_TOKEN, f"<loc_{number}>")
    assert location_of(f"<loc_{number}>") == location


def test_a_pixel_has_no_float_noise():
    """Doubles multiplied before they are divided: 33.6 and not 33.599998."""
    assert to_pixel(52, 640) == 33.6


def test_a_region_measures_x_by_the_width_and_y_by_the_height():
    """The four tokens are x1, y1, x2, y2."""
    assert region_tokens((64, 48, 320, 479), (640, 480)) == "<loc_100><loc_100><loc_500><loc_997>"
