"""An encoded image as bytes, base64 or a data URL."""

from __future__ import annotations

import base64
import contextlib
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence2.errors import InvalidImage
from florence2.images import decode_image, encoded_image
from tests import reference  # noqa: F401  the profile of hypothesis
from tests.unit.domain.image_files import LIMIT, colorful, encode

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
    """The result is the same encoded image."""
    assert encoded_image(data) == IMAGE


@given(st.binary())
def test_base64_of_anything_is_read_in_both_alphabets(data):
    """It is read with and without padding."""
    for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        assert encoded_image(encoded) == encoded_image(encoded.rstrip(b"=")) == data


@given(
    st.binary()
    | st.text("abc=+/-_ \n,;:%").map(str.encode)
    | st.just(b"data:")
    | st.binary().map(b"data:;base64,".__add__)
)
def test_any_bytes_give_bytes_or_are_refused(data):
    """There is no other exception."""
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
    """Megabytes of anything take linear time. A data URL with millions of escapes once took 14 seconds."""
    data, start = b"".join(part * times for part, times in runs), time.thread_time()
    with contextlib.suppress(InvalidImage):
        encoded_image(data)
    assert time.thread_time() - start < 2


def test_plain_text_images_are_not_taken_for_base64():
    """A plain PBM consists of letters of the base64 alphabet and spaces."""
    data = b"P1\n4 2\n0 1 0 1\n1 0 1 0\n"
    assert encoded_image(data) == data
    assert decode_image(data, LIMIT).size == (4, 2)
