"""What `florence2 run` prints of an answer, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import sys

import pytest
from PIL import Image

from florence2_client import cli
from florence2_client.cli import console
from tests.unit.client.cli.fake_server import ANSWERS


def test_boxes_are_an_aligned_table_with_a_summary(server, image, capsys):
    """Labels, confidences and rounded boxes stand in columns, also behind wide characters; the last line sums up."""
    assert cli.main(["run", image, "--task", "od", "--no-json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "label  confidence  box (x1,y1 x2,y2)",
        "dog    0.99        1,2 34,24",
        "中文   0.50        5,6 7,8",
        "",
    ]
    assert lines[4].startswith("7 tokens, stop, image 40x30, ")
    assert lines[4].endswith(" ms")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("<CAPTION>", ["a café"]),
        (
            "<OCR_WITH_REGION>",
            ["label  confidence  corners (x1,y1 x2,y2 x3,y3 x4,y4)", "EXIT   0.25        1,2 30,2 30,9 1,9"],
        ),
        (
            "<REGION_TO_SEGMENTATION>",
            ["label  confidence  points  extent (x1,y1 x2,y2)", "-      -           5       1,2 30,9"],
        ),
        (
            "<OPEN_VOCABULARY_DETECTION>",
            [
                "label  confidence  box (x1,y1 x2,y2)",
                "cat    -           1,2 3,4",
                "label  confidence  points             extent (x1,y1 x2,y2)",
                "hat    -           3                  1,2 30,9",
            ],
        ),
        ("<REGION_PROPOSAL>", ["(nothing found)"]),
        ("<DocVQA>What?", ["42"]),
        ("<REGION_TO_CATEGORY>", ["dog [0,3 20,30]"]),
    ],
)
def test_every_kind_of_answer_is_readable(server, image, capsys, task, expected):
    """A text is printed as it is, objects as a table, and an empty answer as a remark."""
    text = {
        "<REGION_TO_SEGMENTATION>": "1,2,3,4",
        "<REGION_TO_CATEGORY>": "1,2,3,4",
        "<OPEN_VOCABULARY_DETECTION>": "cat",
    }
    given = ["--text", text[task]] if task in text else []
    assert cli.main(["run", image, "--task", task, "--no-json", *given]) == 0
    assert capsys.readouterr().out.splitlines()[:-2] == expected


def test_cut_off_answer_is_marked(server, image, capsys):
    """The summary says so when the token limit ended the answer."""
    server.finish_reason = b"length"
    cli.main(["run", image, "--task", "od", "--no-json"])
    assert "length (cut off)" in capsys.readouterr().out


def test_unsure_objects_can_be_left_out(server, image, capsys):
    """They are missing in tables and in JSON; text answers stay. The minimum is a probability."""
    assert cli.main(["run", image, "--task", "od", "--no-json", "--min-confidence", "0.6"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["label", "dog"]
    assert cli.main(["run", image, "--task", "od,caption", "--min-confidence", "0.99"]) == 0
    found, caption = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["answer"]["labels"] == [] and caption["answer"] == "a café"
    assert cli.main(["run", image, "--task", "region_proposal", "--min-confidence", "0.5"]) == 2
    assert "no confidences" in capsys.readouterr().err
    assert cli.main(["run", image, "--task", "od", "--min-confidence", "50"]) == 2
    assert "--min-confidence must be at least 0 and at most 1, not 50" in capsys.readouterr().err


def test_json_is_one_object(server, image, capsys):
    """In a pipe exactly one JSON object is printed and nothing else."""
    assert cli.main(["run", image, "--task", "od"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out)["answer"] == ANSWERS["<OD>"]


def test_a_document_is_answered_page_by_page(server, image, tmp_path, capsys):
    """Each page has a line and a drawing."""
    sheet = Image.open(image)
    sheet.save(tmp_path / "scan.tif", save_all=True, append_images=[sheet])
    drawn = tmp_path / "found.png"
    assert cli.main(["run", str(tmp_path / "scan.tif"), "--task", "od", "--draw", str(drawn)]) == 0
    assert [json.loads(line)["page"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    assert {path.name for path in tmp_path.glob("found*")} == {"found-1.png", "found-2.png"}


def test_free_prompt_is_announced(server, image, capsys, monkeypatch):
    """There is one note, on standard error."""
    monkeypatch.setitem(ANSWERS, "Which season is it?", "summer")
    assert cli.main(["run", image, "--task", "Which season is it?", "--no-json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("summer\n")
    assert captured.err.count("free prompt") == captured.err.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_gets_text_and_styles(server, image, monkeypatch):
    """On a terminal people read a table with a bold heading; NO_COLOR and a dumb terminal leave the style out."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["run", image, "--task", "od"]) == 0
    assert sys.stdout.getvalue().startswith("\x1b[1mlabel  confidence  box (x1,y1 x2,y2)\x1b[0m\n")
    monkeypatch.setenv("TERM", "dumb")
    assert console.styled("x", "red", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.styled("x", "red", Terminal()) == "x"


def test_terminal_without_unicode_gets_escapes(server, image, monkeypatch):
    """An ASCII-only output stream prints escapes instead of failing."""
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert cli.main(["run", image, "--task", "caption", "--no-json"]) == 0
    assert ascii_only.buffer.getvalue().startswith(b"a caf\\xe9\n")
    assert cli.main(["run", image, "--task", "caption", "--json"]) == 0
    assert json.loads(ascii_only.buffer.getvalue().splitlines()[-1])["answer"] == "a café"
