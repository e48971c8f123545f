"""Directories, patterns, lists and files as the pictures of a batch run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from florence2.errors import InvalidRequest
from florence2_client.cli.sources import image_paths, output_path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """b.jpg, a.PNG, sub/c.webp and what is no picture."""
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.md", ".hidden.jpg", "odd"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_directory_is_read_to_the_bottom(folder):
    """Pictures by name, whatever the case of their ending; hidden and other files are left out."""
    assert image_paths(["pictures"]) == ["pictures/a.PNG", "pictures/b.jpg", "pictures/sub/c.webp"]


def test_pattern_list_and_file(folder, monkeypatch):
    """A glob, a list file, standard input, and a file by its own name, even without an ending."""
    assert image_paths(["pictures/**/*.webp"]) == ["pictures/sub/c.webp"]
    (folder / "list.txt").write_text("pictures/b.jpg\n\n  missing.jpg  \n")
    assert image_paths(["list.txt"]) == ["pictures/b.jpg", "missing.jpg"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("x.png\n"))
    assert image_paths(["-"]) == ["x.png"]
    assert image_paths(["pictures/odd"]) == ["pictures/odd"]


def test_a_picture_comes_once(folder):
    """Sources may overlap."""
    assert image_paths(["pictures/b.jpg", "pictures", "pictures/*.jpg"])[0] == "pictures/b.jpg"
    assert len(image_paths(["pictures/b.jpg", "pictures", "pictures/*.jpg"])) == 3


@pytest.mark.parametrize("source", ["no/such/dir", "nothing.jpg", "pictures/*.tif"])
def test_nothing_to_ask_about_is_a_mistake(folder, source):
    """A misspelt source is named, not silently skipped."""
    with pytest.raises(InvalidRequest):
        image_paths([source])


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("a/b.jpg", "out/a/b.txt"),
        ("/data/b.jpg", "out/data/b.txt"),
        ("../b.jpg", "out/_up/b.txt"),
        ("./b", "out/b.txt"),
    ],
)
def test_outputs_stay_in_their_folder(picture, expected):
    """Pictures of two directories do not overwrite one another's outputs, and nothing is written outside."""
    assert output_path(Path("out"), picture, ".txt") == Path(expected)
