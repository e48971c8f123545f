"""Images in every form that users have them."""

from __future__ import annotations

import base64
import io
import struct
import threading

import numpy as np
import pytest
from PIL import Image

from florence2.errors import InvalidImage
from florence2_client import Client
from florence2_client.images import decoded_image, encoded_bytes
from tests.unit.client.fake_transport import FakeTransport, png, sent_by

DATA = png((20, 10))


def test_a_file_may_be_a_path_or_a_file_url(tmp_path):
    path = tmp_path / "a photo.png"
    path.write_bytes(DATA)
    for image in (path, str(path), path.as_uri()):
        assert encoded_bytes(image) == DATA


def test_base64_text_is_decoded_and_base64_bytes_are_left_to_the_server():
    text = base64.b64encode(DATA).decode()
    lines = base64.encodebytes(DATA).decode()
    urlsafe = base64.urlsafe_b64encode(DATA).decode().rstrip("=")
    for image in (text, lines, urlsafe, f"data:image/png;base64,{text}", f"DATA:;base64,{text}"):
        assert encoded_bytes(image) == DATA
        assert encoded_bytes(image.encode()) == image.encode()
        assert decoded_image(image.encode()).size == (20, 10)


def test_file_and_bytes_travel_untouched(tmp_path):
    """Encoded images are not re-encoded, whether they come as a path, a name or bytes."""
    data = png()
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for image in (path, str(path), data, bytearray(data), memoryview(data)):
        assert sent_by(image)["IMAGE"][0] == data


def test_open_files_keep_their_position(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"before" + DATA)
    with path.open("rb") as file:
        file.seek(6)
        assert [encoded_bytes(file), encoded_bytes(file)] == [DATA, DATA]  # a second task reads the same
        assert file.tell() == 6
    written = io.BytesIO()
    written.write(DATA)  # and not rewound
    assert encoded_bytes(written) == DATA


def test_an_open_file_may_be_shared_by_requests():
    file = io.BytesIO(DATA * 1000)
    threads = [threading.Thread(target=lambda: sizes.append(len(encoded_bytes(file)))) for _ in range(20)]
    sizes: list[int] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [len(DATA) * 1000] * 20


def test_a_pipe_is_read_once():
    class Pipe(io.RawIOBase):
        def readable(self):
            return True

        def readall(self):
            return DATA

    assert encoded_bytes(Pipe()) == DATA


def sent_image(image):
    return Image.open(io.BytesIO(sent_by(image)["IMAGE"][0]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "F"])
def test_pil_image_of_any_mode_is_encoded(mode):
    """Every mode of Pillow arrives as an image of the same size."""
    assert sent_image(Image.new(mode, (5, 4))).size == (5, 4)


def test_pil_image_keeps_its_pixels():
    """Encoding is lossless, and orientation metadata of the opened file does not turn the pixels in hand."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    opened = Image.open(buffer)
    assert opened.getexif()[0x0112] == 6
    sent = sent_image(opened)
    assert sent.getexif().get(0x0112) is None
    assert np.array_equal(np.asarray(sent), pixels)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_array_keeps_its_pixels(shape):
    """Gray, RGB and RGBA arrays arrive unchanged."""
    array = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(sent_image(array)), array.reshape(shape[:2] if shape[-1] == 1 else shape))


class Tensor:
    """A stand-in for a tensor of torch: its `__array__` fails if it is on another device."""

    def __init__(self, array: np.ndarray | None) -> None:
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.array


def test_a_tensor_is_an_array():
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert encoded_bytes(Tensor(array)) == encoded_bytes(array)
    with pytest.raises(InvalidImage, match="is it on another device"):
        encoded_bytes(Tensor(None))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 4, 3), dtype=np.float32),
        np.zeros((3, 4, 2), dtype=np.uint8),
        np.zeros((1, 3, 4, 3), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        Image.new("RGB", (0, 3)),
        b"",
        None,
        7,
        "no/such/file.jpg",
        "nul\0byte",
        ".",
    ],
)
def test_unusable_image_is_refused_before_anything_is_sent(image):
    """The error is InvalidImage."""
    transport = FakeTransport()
    with pytest.raises(InvalidImage):
        Client(transport=transport).run(image, "od")
    assert transport.asked == []


def closed_file() -> io.BytesIO:
    file = io.BytesIO(DATA)
    file.close()
    return file


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (io.StringIO("text"), "open it with mode 'rb'"),
        (io.BytesIO(), "is empty"),
        (closed_file(), "closed file"),
        (bytearray(), "is empty"),
        ([[1, 2]] * 9999, "not a value of type list"),
        ({"path": "x" * 44_041}, "not a value of type dict"),
        ("x" * 44_041, "neither the path of a file"),
        ("x/" * 400 + "y.jpg", "File name too long|there is no file"),
        ("no/such/file", "there is no file no/such/file"),
        (np.zeros((2, 3), object), "not object of shape"),
        (np.zeros((2, 3, 4, 5, 6)), "not float64 of shape"),
        ("s3://bucket/x.jpg", "only http:// and https:// URLs are"),
        ("https://", "is not the URL of an image"),
        ("https://user:pass@host/x.jpg", "is not the URL of an image"),
        ("data:image/png;base64,%%%", "damaged"),
        (b"%PDF-1.7 ...", "PDF document; florence2_client.pages"),
        (lambda: None, "not a value of type function"),
    ],
)
def test_a_wrong_image_is_refused_in_a_short_sentence(image, words):
    with pytest.raises(InvalidImage, match=words) as caught:
        Client(transport=object()).run(image, "od")
    assert len(str(caught.value)) < 250


def test_a_file_that_no_request_can_hold_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("florence2_client.images.MOST_BYTES", 100)
    path = tmp_path / "large.png"
    path.write_bytes(bytes(101))
    for image in (path, str(path), bytes(101), io.BytesIO(bytes(101))):
        with pytest.raises(InvalidImage, match="the image has 101 bytes; at most 100 can be sent"):
            encoded_bytes(image)


@pytest.mark.parametrize("error", [IndexError("x"), TypeError("x"), KeyError("x"), struct.error("x")])
def test_an_image_that_pillow_cannot_read_is_refused(error, monkeypatch):
    """It decodes a file that is open only when it must, and raises nearly anything."""
    image = Image.new("RGB", (9, 9))
    monkeypatch.setattr(image, "save", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(InvalidImage, match="the image cannot be read"):
        encoded_bytes(image)
