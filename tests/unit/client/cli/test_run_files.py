"""The files that `florence2 run` writes: drawings and masks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from florence2_client import cli
from tests.unit.client.cli.fake_server import ANSWERS
from tests.unit.client.cli.processes import COMMAND


def test_draw_writes_the_image(server, image, tmp_path):
    """`--draw` leaves an image file with more on it than the plain gray of the original."""
    drawn = tmp_path / "out.jpg"
    assert cli.main(["run", image, "--task", "od", "--draw", str(drawn)]) == 0
    assert len(Image.open(drawn).convert("RGB").getcolors(1 << 24)) > 1


def test_a_warning_is_one_sentence(server, image, tmp_path, capsys, monkeypatch):
    """A label in letters that no font has gives one warning, without a line of code."""
    monkeypatch.setitem(ANSWERS, "<CAPTION>", "\U0010fffd")
    assert cli.main(["run", image, "--task", "caption", "--draw", str(tmp_path / "out.png")]) == 0
    error = capsys.readouterr().err
    assert error.startswith("florence2: no font here has") and error.count("\n") == 1


@pytest.mark.parametrize("name", ["out.txt", "out", "no/such/dir/out.png", "out.pdf.unknown"])
def test_undrawable_file_is_refused_before_the_request(server, image, tmp_path, capsys, name):
    """The server does no work for a drawing that cannot be written."""
    assert cli.main(["run", image, "--task", "od", "--draw", str(tmp_path / name)]) == 2
    assert server.asked == []


def test_file_in_place_of_a_folder_is_named_as_one(server, image, tmp_path, capsys):
    """The system would only say that the file exists."""
    (tmp_path / "masks").write_text("")
    assert cli.main(["run", image, "--task", "od", "--masks", str(tmp_path / "masks")]) == 2
    assert capsys.readouterr().err.endswith("masks cannot be written: it is a file, not a directory\n")
    assert server.asked == []


@pytest.mark.parametrize(
    "link", [os.symlink, os.link, lambda _image, _path: None], ids=["symlink", "hard link", "same"]
)
def test_the_image_is_not_overwritten_by_its_drawing(server, image, tmp_path, capsys, link):
    """Neither through a link, nor when it comes on standard input."""
    content = Path(image).read_bytes()
    path = tmp_path / "other.png"
    link(image, path)
    drawing = str(path) if path.exists() else image
    assert cli.main(["run", image, "--task", "od", "--draw", drawing]) == 2
    assert "would overwrite the image" in capsys.readouterr().err
    with open(image, "rb") as stream:
        command = [*COMMAND, "run", "-", "--task", "od", "--url", "127.0.0.1:1", "--draw", drawing]
        ended = subprocess.run(command, stdin=stream, stderr=subprocess.PIPE, timeout=60)
    assert ended.returncode == 2 and b"would overwrite the image" in ended.stderr
    assert Path(image).read_bytes() == content and server.asked == []


def test_drawing_on_a_full_disk_names_the_file(server, image, tmp_path, capsys):
    """The exit code is 1, because a full disk is no mistake in the command."""
    (tmp_path / "full.png").symlink_to("/dev/full")
    assert cli.main(["run", image, "--task", "od", "--draw", str(tmp_path / "full.png")]) == 1
    assert capsys.readouterr().err == f"florence2: {tmp_path}/full.png cannot be written: No space left on device\n"
