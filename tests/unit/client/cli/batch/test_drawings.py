"""The drawings of `florence2 batch`: each answer has one, and none is taken for an image or replaces one."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.client.cli.batch.runs import batch, lines


def test_each_answer_has_its_drawing(server, folder):
    """An image with several tasks has one for each."""
    assert batch("--tasks", "caption,od", "--draw", "drawn") == 0
    assert sorted(path.name for path in Path("drawn/images").iterdir())[:2] == ["0.png.caption.jpg", "0.png.od.jpg"]
    assert len(lines()) == len(list(Path("drawn/images").iterdir())) == 10


def test_images_of_the_same_name_have_drawings_of_their_own(server, folder, capsys):
    """So have texts that differ only in punctuation. A run in which two would share one after all is refused."""
    Path("b").mkdir()
    for copy in ("b/0.png", "b/0.bmp"):
        Image.open("images/0.png").save(copy)
    phrases = "<OPEN_VOCABULARY_DETECTION>a dog,<OPEN_VOCABULARY_DETECTION>a_dog"
    assert batch("--tasks", phrases, "--draw", "drawn", sources=["images/0.png", "b"]) == 0
    assert len(list(Path("drawn").rglob("*.jpg"))) == 6
    absolute = [str(folder / "b"), str(folder / "b").lstrip("/")]
    Path(absolute[1]).mkdir(parents=True)
    Image.open("images/0.png").save(Path(absolute[1], "0.png"))
    assert batch("--tasks", "caption", "--draw", "drawn", sources=absolute, out="b.jsonl") == 2
    assert "would share the drawing" in capsys.readouterr().err


def test_drawings_that_cannot_be_written_end_the_run(server, folder, capsys, caplog):
    """The folder is named, and nothing is sent."""
    Path("drawn").touch()
    assert batch("--tasks", "caption", "--draw", "drawn") == 2
    gc.collect()  # asyncio logs an error that no one read when its task is collected
    error = capsys.readouterr().err
    assert "drawn" in error and not caplog.records
    assert server.asked == []


def test_drawings_are_not_read_as_images(server, folder, capsys):
    """They are skipped in the next run, in one that draws elsewhere, and if a pattern or a file name matches them."""
    assert batch("--tasks", "caption", "--draw", "drawn", sources=["."]) == 0
    assert batch("--tasks", "caption", "--draw", "drawn", sources=["."]) == 0
    assert "note: skipped drawn/ (drawings)" in capsys.readouterr().err
    assert batch("--tasks", "caption", "--draw", "drawn/again", sources=["."], out="b.jsonl") == 0
    assert batch("--tasks", "caption", sources=["**/*.jpg", "images"], out="c.jsonl") == 0
    assert batch("--tasks", "caption", sources=["drawn/images/0.png.caption.jpg", "images"], out="d.jsonl") == 0
    assert {len(lines(out)) for out in ("out.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")} == {5}
    assert batch("--tasks", "caption", sources=["drawn"], out="e.jsonl") == 2


@pytest.mark.parametrize(
    ("sources", "draw"),
    [
        (["images"], "images"),
        (["images"], "."),
        (["images"], "link"),
        (["link"], "images"),
        (["images/0.png"], "images"),
    ],
)
def test_images_and_drawings_do_not_share_a_folder(server, folder, capsys, sources, draw):
    """The run is refused before anything is sent or written, also if a link leads to the folder."""
    Path("link").symlink_to("images")
    assert batch("--tasks", "caption", "--draw", draw, sources=sources) == 2
    assert "give --draw a folder of its own" in capsys.readouterr().err
    assert server.asked == [] and len(list(Path("images").iterdir())) == 5


def test_a_drawing_replaces_a_link_and_not_its_target(server, folder):
    """It replaces a hard link as well, so that the file under its other name stays as it is."""
    photo = Path("images/1.png").read_bytes()
    Path("drawn/images").mkdir(parents=True)
    Path("drawn/images/0.png.caption.jpg").symlink_to(folder / "images/1.png")
    os.link("images/1.png", "drawn/images/2.png.caption.jpg")
    Path("drawn/.florence2-drawings").touch()
    assert batch("--tasks", "caption", "--draw", "drawn") == 0
    assert Path("images/1.png").read_bytes() == photo
    assert Image.open("drawn/images/0.png.caption.jpg").format == "JPEG"
