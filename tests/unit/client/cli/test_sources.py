"""Directories, patterns, lists and files as the images of a batch run."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from florence2.errors import InvalidRequest
from florence2_client.sources import SUFFIXES, ImagePaths, file_name, file_of, output_path


def image_paths(sources):
    return ImagePaths(sources).paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """b.jpg, a.PNG, sub/c.webp and what is no image."""
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.md", ".hidden.jpg", "odd"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_directory_is_read_to_the_bottom(folder):
    """Images by name, whatever the case of their ending; hidden and other files are left out."""
    assert image_paths(["images"]) == ["images/a.PNG", "images/b.jpg", "images/sub/c.webp"]


def test_a_source_may_be_a_pattern_a_list_or_a_file(folder, monkeypatch):
    """A list may come on standard input, and a file that is named needs no ending."""
    assert image_paths(["images/**/*.webp"]) == ["images/sub/c.webp"]
    (folder / "list.txt").write_text("images/b.jpg\n\n  missing.jpg  \n")
    assert image_paths(["list.txt"]) == ["images/b.jpg", "missing.jpg"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("x.png\n"))
    assert image_paths(["-"]) == ["x.png"]
    assert image_paths(["images/odd"]) == ["images/odd"]


def test_an_image_comes_once(folder):
    """Sources may overlap."""
    assert image_paths(["images/b.jpg", "images", "images/*.jpg"])[0] == "images/b.jpg"
    assert len(image_paths(["images/b.jpg", "images", "images/*.jpg"])) == 3


@pytest.mark.parametrize("source", ["no/such/dir", "nothing.jpg", "images/*.tif"])
def test_nothing_to_ask_about_is_a_mistake(folder, source):
    """A misspelt source is named, not silently skipped."""
    with pytest.raises(InvalidRequest):
        image_paths([source])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("a/b.jpg", "out/a/b.txt"),
        ("/data/b.jpg", "out/data/b.txt"),
        ("../b.jpg", "out/_up/b.txt"),
        ("./b", "out/b.txt"),
    ],
)
def test_outputs_stay_in_their_folder(image, expected):
    """Images of two directories do not overwrite one another's outputs, and nothing is written outside."""
    assert output_path(Path("out"), image, ".txt") == Path(expected)


def test_skipped_files_are_counted_and_named(folder, monkeypatch):
    """By kind, with a few names, each once; hidden files are none of a user's business."""
    monkeypatch.setattr("florence2_client.sources.SUFFIXES", SUFFIXES - {".heic"})
    for number in range(5):
        (folder / f"images/{number}.HEIC").touch()
    found = ImagePaths(["images", "images/*"])
    assert found.skipped_line() == (
        "5 .heic files (0.HEIC, 1.HEIC, 2.HEIC, …; needs: pip install 'florence2-triton[heif]'), "
        "1 .md file (notes.md), 1 file without a suffix (odd)"
    )
    (folder / "other").mkdir()
    (folder / "other/x.heic").touch()
    with pytest.raises(InvalidRequest, match=r"no image in the given sources; skipped 1 .heic file \(x.heic"):
        image_paths(["other"])


def test_each_page_of_a_document_is_an_image(tmp_path, monkeypatch):
    """A PDF has pages even if it is one; a TIFF of one page, and what cannot be read, stay files."""
    pytest.importorskip("pypdfium2")
    monkeypatch.chdir(tmp_path)
    sheet = Image.new("RGB", (30, 20))
    sheet.save("one.tif")
    sheet.save("two.tif", save_all=True, append_images=[sheet])
    sheet.save("one.pdf")
    sheet.save("moving.tif", "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), "red")])  # not a TIFF
    (tmp_path / "damaged.tif").write_bytes(b"II*\0")
    files, pages = ["damaged.tif", "moving.tif"], ["one.pdf#1", "one.tif", "two.tif#1", "two.tif#2"]
    assert image_paths(["."]) == [f"./{name}" for name in files + pages]
    assert file_of("./two.tif#2") == ("./two.tif", 2)
    (tmp_path / "odd.tif#1").touch()
    assert file_of("odd.tif#1") == ("odd.tif#1", None) and file_of("a.png#1") == ("a.png#1", None)
    assert output_path(Path("out"), "two.tif#2", ".txt") != output_path(Path("out"), "two.tif#1", ".txt")


def test_a_list_may_hold_names_that_are_not_unicode(folder):
    """A byte order mark is no part of the first name either."""
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\ncaf\xe9.png\n")
    assert image_paths(["list.txt"]) == ["a.png", os.fsdecode(b"caf\xe9.png")]


@pytest.mark.parametrize("content", ["a.png\n".encode("utf-16"), b"a\0b.png\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_what_is_no_list_of_paths_is_refused(folder, content):
    (folder / "list.txt").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"line [1-3] of the list list\.txt is not a path; is it a text in UTF-8"):
        image_paths(["list.txt"])


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_list_that_is_not_piped_in_is_not_waited_for(folder, monkeypatch, stream):
    if stream:
        stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(InvalidRequest, match="no list is piped in"):
        image_paths(["-"])


def test_a_link_to_a_folder_is_not_passed_over_in_silence(folder):
    """Nor is it followed, which might never end."""
    (folder / "images/more").symlink_to(folder)
    found = ImagePaths(["images"])
    assert len(found.paths) == 3 and "images/more/ (a link to a folder)" in found.skipped_line()


def test_no_image_is_lost_when_its_pages_are_counted(tmp_path, monkeypatch):
    """Such as one with too many pixels, an animation with the name of a TIFF, or a TIFF of nothing but an overview."""
    monkeypatch.chdir(tmp_path)
    sheet = Image.new("RGB", (30, 20))
    sheet.save("animation.tif", "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), "red")])
    sheet.save("overview.tif", tiffinfo={254: 1})
    assert image_paths(["."]) == ["./animation.tif", "./overview.tif"]
    sheet.save("large.tif", save_all=True, append_images=[sheet])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert image_paths(["large.tif"]) == ["large.tif"]


def test_names_of_files_are_not_too_long():
    """In bytes, which are what file systems count."""
    assert len(file_name("\U00020000" * 500).encode()) == 160 and file_name("a dog, asleep") == "a_dog_asleep"
