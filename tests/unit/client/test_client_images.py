"""Images in every form that users hold, and the pages of documents."""

from __future__ import annotations

import base64
import http.server
import io
import struct
import threading

import numpy as np
import pytest
from PIL import Image, ImageDraw, TiffImagePlugin

from florence2.errors import InvalidImage, InvalidOption, InvalidPrompt
from florence2_client import Client, download, pages
from florence2_client.images import decoded_image, encoded_bytes
from florence2_client.request import build_request
from tests.unit.client.test_client import png

DATA = png((20, 10))


def test_a_file_path_or_address_of_this_machine(tmp_path):
    path = tmp_path / "a photo.png"
    path.write_bytes(DATA)
    for image in (path, str(path), path.as_uri()):
        assert encoded_bytes(image) == DATA


def test_text_and_bytes_that_hold_an_encoded_image():
    text = base64.b64encode(DATA).decode()
    lines = base64.encodebytes(DATA).decode()
    urlsafe = base64.urlsafe_b64encode(DATA).decode().rstrip("=")
    for image in (text, lines, urlsafe, f"data:image/png;base64,{text}", f"DATA:;base64,{text}"):
        assert encoded_bytes(image) == DATA
        assert encoded_bytes(image.encode()) == image.encode()  # the server reads it
        assert decoded_image(image.encode()).size == (20, 10)


def test_open_files_keep_their_position(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"before" + DATA)
    with path.open("rb") as file:
        file.seek(6)
        assert [encoded_bytes(file), encoded_bytes(file)] == [DATA, DATA]  # for a second task
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


class Tensor:
    """A stand-in for torch's: it has `__array__`, which fails for a tensor on another device."""

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


@pytest.mark.parametrize("region", [[1] * 9999, "1", {"x": 1}, b"abcd", 7, [[1, 2, 3, 4]] * 999, object()])
def test_a_wrong_region_is_refused_in_a_short_sentence(region):
    if region == "1":
        pytest.skip("text is the server's to read")
    with pytest.raises(InvalidPrompt, match="a region is four numbers") as caught:
        build_request(DATA, "region_to_ocr", region)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [[1] * 9999, "x" * 9999, object(), int])
def test_a_wrong_option_is_refused_in_a_short_sentence(value):
    for option in ("num_beams", "length_penalty", "timeout", "max_side"):
        with pytest.raises(InvalidOption) as caught:
            build_request(DATA, "od", **{option: value})
        assert len(str(caught.value)) < 250


# On the web


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        base = f"http://{self.headers['Host']}"
        match self.path.partition("?")[0]:
            case "/image.png":
                self.answer(200, DATA)
            case "/page":
                self.answer(200, b"<!doctype html><title>Sign in</title>")
            case "/empty":
                self.answer(200, b"")
            case "/moved":
                self.answer(302, b"", Location=f"{base}/image.png")
            case "/loop":
                self.answer(302, b"", Location=f"{base}/loop")
            case "/file":
                self.answer(302, b"", Location="file:///etc/passwd")
            case "/large":
                self.answer(200, bytes(2_000_000))
            case "/slow":
                self.send_response(200)
                self.end_headers()
                for _ in range(50):
                    self.wfile.write(b"x")
                    stop.wait(0.1)
            case _:
                self.answer(404, b"<html>")

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


stop = threading.Event()


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        stop.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(download, "MOST_BYTES", 1_000_000)
    monkeypatch.setattr(download, "MOST_SECONDS", 1.0)


@pytest.mark.parametrize("path", ["/image.png", "/image.png?size=large", "/moved"])
def test_an_image_on_the_web_is_fetched(site, path):
    assert encoded_bytes(site + path) == DATA


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "is an HTML page, not an image"),
        ("/empty", "is empty"),
        ("/missing?key=secret", "was answered with HTTP status 404"),
        ("/loop", "redirects too often"),
        ("/file", "redirects to an address that is not on the web"),
        ("/large", "is larger than"),
        ("/slow", "takes longer than"),
    ],
)
def test_what_cannot_be_fetched_is_named(site, path, words):
    with pytest.raises(InvalidImage, match=words) as caught:
        encoded_bytes(site + path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/x.png", "connection refused"),
        ("http://no-such-host.invalid/x.png", "unknown host"),
        ("http://127.0.0.1:99999/x.png", "is not the URL of an image"),
        ("http://[::1/x.png", "is not the URL of an image"),
        ("https://exa mple/" + "x" * 9999, "."),
    ],
)
def test_an_absent_site_is_one_sentence(url, words):
    with pytest.raises(InvalidImage, match=words) as caught:
        encoded_bytes(url)
    assert len(str(caught.value)) < 250


def test_the_internet_does_not_lead_into_a_private_network(site, monkeypatch):
    monkeypatch.setattr(download, "_is_private", lambda url: url.endswith("/image.png"))
    with pytest.raises(InvalidImage, match="redirects to an address in a private network"):
        encoded_bytes(f"{site}/moved")


# HEIC, PDF, TIFF

# 64 x 48 pixels in (200, 30, 60), blue at the upper left, to be turned by 90 degrees (orientation 6).
HEIC = """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA
AAAERAAAIAAQAAAAAB7AABAAAAAAAAAFoAAgAAAAACRgABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp
bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGE
ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA
AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEH
BpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAIZtZGF0AAAA
VigBrwngITkdpzf8EZKM/VU2V3Nhx6KISGiOqDDDqmBW/cTQjEKiaUT+Ffj37NvqwyZ4v5v+D/TBI9exa7V1zg8UVRU/7B1v/SYTf8waGmAGlV
dqb0+AAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA
"""


@pytest.fixture
def heic() -> bytes:
    return base64.b64decode(HEIC)


def test_a_heic_photo_becomes_a_jpeg(heic):
    pytest.importorskip("pi_heif")
    assert encoded_bytes(heic).startswith(b"\xff\xd8\xff")
    image = decoded_image(heic)
    assert image.size == (48, 64)  # turned once
    assert np.abs(np.subtract(image.getpixel((2, 2)), (200, 30, 60))).max() < 8
    assert np.abs(np.subtract(image.getpixel((45, 2)), (20, 120, 220))).max() < 8


def test_without_pi_heif_a_heic_photo_is_refused_with_the_remedy(heic, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pi_heif", None)
    with pytest.raises(InvalidImage, match="HEIC photo, which needs the package pi-heif"):
        encoded_bytes(heic)


def test_a_damaged_heic_photo_is_refused(heic):
    pytest.importorskip("pi_heif")
    with pytest.raises(InvalidImage, match="damaged or incomplete"):
        encoded_bytes(heic[: len(heic) // 2])


def pdf(*sizes: tuple[int, int], **options: object) -> bytes:
    """Pages of the given sizes in points, each with a number of black squares."""
    drawn = []
    for number, size in enumerate(sizes, 1):
        page = Image.new("RGB", size, "white")
        for index in range(number):
            ImageDraw.Draw(page).rectangle((10 + 20 * index, 10, 20 + 20 * index, 20), fill="black")
        drawn.append(page)
    buffer = io.BytesIO()
    drawn[0].save(buffer, "PDF", save_all=True, append_images=drawn[1:], resolution=72, **options)
    return buffer.getvalue()


def test_the_pages_of_a_pdf(tmp_path):
    pytest.importorskip("pypdfium2")
    path = tmp_path / "form.pdf"
    path.write_bytes(pdf((100, 50), (60, 80)))
    for document in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert [page.size for page in pages(document, dpi=144)] == [(200, 100), (120, 160)]
    first, second = (np.asarray(page.convert("L")) for page in pages(path, dpi=72))
    assert first[15, 15] < 50 < 200 < first[15, 35]
    assert second[15, 15] < 50 and second[15, 35] < 50


def test_a_large_page_is_rendered_within_the_limit():
    pytest.importorskip("pypdfium2")
    [page] = pages(pdf((2000, 1000)), dpi=5000)
    assert 90_000_000 < page.width * page.height <= 100_000_000


def test_a_pdf_that_cannot_be_read(monkeypatch):
    pypdfium2 = pytest.importorskip("pypdfium2")
    with pytest.raises(InvalidImage, match="the PDF document is damaged or incomplete"):
        list(pages(b"%PDF-1.7 and nothing else"))
    for dpi in (0, -1, float("nan"), "200"):
        with pytest.raises(InvalidOption, match="dpi"):
            list(pages(DATA, dpi=dpi))
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    with pytest.raises(InvalidImage, match="needs the package pypdfium2"):
        list(pages(pdf((10, 10))))
    assert pypdfium2


def test_the_pages_of_a_tiff():
    colors = ["red", "lime", "blue"]
    buffer = io.BytesIO()
    first, *rest = [Image.new("RGB", (8 + index, 8), color) for index, color in enumerate(colors)]
    first.save(buffer, "TIFF", save_all=True, append_images=rest)
    found = list(pages(buffer))
    assert [page.size for page in found] == [(8, 8), (9, 8), (10, 8)]
    assert [page.getpixel((0, 0)) for page in found] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_tiff_that_cannot_be_read_is_refused():
    buffer = io.BytesIO()
    first, second = Image.new("RGB", (400, 400), "red"), Image.effect_noise((400, 400), 99)
    first.save(buffer, "TIFF", save_all=True, append_images=[second], compression="tiff_lzw")
    for data in (b"II*\0", b"MM\0*" + b"x" * 100, buffer.getvalue()[:200]):
        with pytest.raises(InvalidImage):
            list(pages(data))


def test_a_smaller_copy_in_a_tiff_is_no_page():
    overview = TiffImagePlugin.ImageFileDirectory_v2()
    overview[254] = 1  # NewSubfileType
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer, True) as writer:
        Image.new("RGB", (80, 80)).save(writer, "TIFF")
        writer.newFrame()
        Image.new("RGB", (8, 8)).save(writer, "TIFF", tiffinfo=overview)
    assert [page.size for page in pages(buffer.getvalue())] == [(80, 80)]


def test_any_other_image_is_one_page():
    for image in (DATA, Image.new("L", (3, 4)), np.zeros((4, 3), np.uint8)):
        assert len(list(pages(image))) == 1
    with pytest.raises(InvalidImage):
        list(pages(b"nothing"))


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


@pytest.mark.parametrize("host", ["10.0.0.1", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[2002:a00:1::]"])
def test_private_addresses_are_known_in_every_form(host):
    assert download._is_private(f"http://{host}/image.png") and not download._is_private("http://8.8.8.8/image.png")
