"""HEIC photos, and the pages of PDF and TIFF documents."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, TiffImagePlugin

from florence2.errors import InvalidImage, InvalidOption
from florence2_client import pages
from florence2_client.images import decoded_image, encoded_bytes
from tests.unit.client.fake_transport import png
from tests.unit.client.heic import HEIC

DATA = png((20, 10))


def test_a_heic_photo_becomes_a_jpeg():
    pytest.importorskip("pi_heif")
    assert encoded_bytes(HEIC).startswith(b"\xff\xd8\xff")
    image = decoded_image(HEIC)
    assert image.size == (48, 64)  # turned once
    assert np.abs(np.subtract(image.getpixel((2, 2)), (200, 30, 60))).max() < 8
    assert np.abs(np.subtract(image.getpixel((45, 2)), (20, 120, 220))).max() < 8


def test_without_pi_heif_a_heic_photo_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(InvalidImage, match="HEIC photo, which needs the package pi-heif"):
        encoded_bytes(HEIC)


def test_a_damaged_heic_photo_is_refused():
    pytest.importorskip("pi_heif")
    with pytest.raises(InvalidImage, match="damaged or incomplete"):
        encoded_bytes(HEIC[: len(HEIC) // 2])


def pdf(*sizes: tuple[int, int], **options: object) -> bytes:
    """Return a document with pages of these sizes in points; page 1 has one black square, page 2 has two, and so on."""
    drawn = []
    for number, size in enumerate(sizes, 1):
        page = Image.new("RGB", size, "white")
        for index in range(number):
            ImageDraw.Draw(page).rectangle((10 + 20 * index, 10, 20 + 20 * index, 20), fill="black")
        drawn.append(page)
    buffer = io.BytesIO()
    drawn[0].save(buffer, "PDF", save_all=True, append_images=drawn[1:], resolution=72, **options)
    return buffer.getvalue()


def test_each_page_of_a_pdf_is_an_image(tmp_path):
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


def test_a_pdf_that_cannot_be_read_is_refused(monkeypatch):
    pytest.importorskip("pypdfium2")
    with pytest.raises(InvalidImage, match="the PDF document is damaged or incomplete"):
        list(pages(b"%PDF-1.7 and nothing else"))
    for dpi in (0, -1, float("nan"), "200"):
        with pytest.raises(InvalidOption, match="dpi"):
            list(pages(DATA, dpi=dpi))
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(InvalidImage, match="needs the package pypdfium2"):
        list(pages(pdf((10, 10))))


def test_each_page_of_a_tiff_is_an_image():
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
