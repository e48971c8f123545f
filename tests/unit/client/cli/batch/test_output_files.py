"""The output files of `florence2 batch`: where they may be, and what happens if they cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.client.cli.batch.runs import batch, lines


def test_folders_of_outputs_are_created(server, folder):
    """So are all folders above them."""
    assert batch("--tasks", "caption", "--csv", "a/b/words.csv", out="new/dir/x.jsonl") == 0
    assert len(lines("new/dir/x.jsonl")) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "images/0.png"],
        ["--out", "new.jpg"],
        ["--coco", "images/0.png"],
        ["--csv", "photo"],
        ["--coco", "link.json"],
        ["--out", "list.txt"],
        ["--csv", "same.csv", "--coco", "same.csv"],
        ["--out", "images"],
        ["--coco", "/dev/null"],
        ["--out", "/dev/null"],
    ],
    ids=" ".join,
)
def test_outputs_do_not_replace_inputs(server, folder, arguments):
    """Images and lists stay as they are, also if a link leads to them."""
    os.link("images/1.png", "photo")
    os.symlink("images/1.png", "link.json")
    Path("list.txt").write_text("photo\n")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert batch("--tasks", "caption", *arguments, sources=["images", "list.txt"]) == 2
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert server.asked == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["--csv", "file/x.csv"], "file"), (["--coco", "images"], "images"), (["--draw", "file"], "file"),
     (["--out", "file/x.jsonl"], "file"), (["--yolo", "file"], "file")],
)  # fmt: skip
def test_an_unwritable_output_is_named_before_the_first_request(server, folder, capsys, arguments, name):
    """The exit code is 2, because it is a mistake in the command."""
    Path("file").touch()
    assert batch("--tasks", "caption", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"florence2: {name}") and "cannot be written: " in error
    assert server.asked == []


# Runs `florence2 batch` with a limit on the size of files, in place of a full disk.
LIMITED_RUN = """
import resource, sys
root, limit, *arguments = sys.argv[1:]
sys.path.insert(0, root)
import florence2_client.async_client as client
from tests.unit.client.cli.batch.runs import FakeServer, batch
client.open_async_transport = lambda address: FakeServer()
if "--coco" in arguments:  # the journal is written first, so that only the COCO file meets the limit
    batch("--tasks", "caption")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
sys.exit(batch("--tasks", "caption", *arguments))
"""


@pytest.mark.parametrize(
    ("output", "limit", "arguments"),
    [
        ("out.jsonl", 700, []),
        ("drawn/images", 350, ["--draw", "drawn"]),
        ("coco.json", 1, ["--coco", "coco.json"]),
    ],
    ids=["out.jsonl", "drawn/images", "coco.json"],
)
def test_a_full_disk_is_named(folder, output, limit, arguments):
    """The exit code is 1, and there is no traceback."""
    root = str(Path(__file__).parents[5])
    command = [sys.executable, "-c", LIMITED_RUN, root, str(limit), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"florence2: {output}"), ended.stderr
    assert ended.stderr.endswith("cannot be written: File too large\n")
