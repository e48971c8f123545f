"""Directories, patterns, lists and files as the images of a batch run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from florence2.errors import InvalidRequest
from florence2_client.cli.sources import SUFFIXES, ImagePaths, file_of, image_paths, output_path


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


def test_pattern_list_and_file(folder, monkeypatch):
    """A glob, a list file, standard input, and a file by its own name, even without an ending."""
    assert image_paths(["images/**/*.webp"]) == ["images/sub/c.webp"]
    (folder / "list.txt").write_text("images/b.jpg\n\n  missing.jpg  \n")
    assert image_paths(["list.txt"]) == ["images/b.jpg", "missing.jpg"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("x.png\n"))
    assert image_paths(["-"]) == ["x.png"]
    assert image_paths(["images/odd"]) == ["images/odd"]


def test_a_image_comes_once(folder):
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
    monkeypatch.setattr("florence2_client.cli.sources.SUFFIXES", SUFFIXES - {".heic"})
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
    (tmp_path / "damaged.tif").write_bytes(b"II*\0")
    assert image_paths(["."]) == ["./damaged.tif", "./one.pdf#1", "./one.tif", "./two.tif#1", "./two.tif#2"]
    assert file_of("./two.tif#2") == ("./two.tif", 2)
    (tmp_path / "odd.tif#1").touch()
    assert file_of("odd.tif#1") == ("odd.tif#1", None) and file_of("a.png#1") == ("a.png#1", None)
    assert output_path(Path("out"), "two.tif#2", ".txt") != output_path(Path("out"), "two.tif#1", ".txt")
