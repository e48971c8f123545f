"""`make demo` prints a table that fits a terminal, in pixels, and ends with commands that README has too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo import __main__ as demo
from florence2.parsing import parse, pieces_from_text
from florence2.tasks import TASKS
from florence2_client import Result

ROOT = Path(__file__).parents[3]
DRAWN = json.loads((ROOT / "demo" / "images" / "scene.json").read_text(encoding="utf-8"))["tasks"]


def answered(token: str, text: str) -> Result:
    """Return what the client gets for a generated text."""
    answer = parse(TASKS[token].grammar, pieces_from_text(text), (768, 768), ())
    return Result(token, answer, text, "stop", 9, 0.0, (768, 768), prompt_text=DRAWN[token]["input"])


@pytest.mark.parametrize("token", TASKS)
def test_a_row_has_pixels_and_no_tokens(token):
    """It fits into 100 columns with its indent, and an answer that equals what was drawn matches it wholly."""
    text = DRAWN[token]["answer"]
    rows = demo.rows(answered(token, text), 1234.5, text)
    first, *more = rows
    assert first.startswith(TASKS[token].name) and "1234   100%  " in first
    assert all(len(demo.INDENT + row) <= demo.WIDTH for row in rows)
    assert "<loc_" not in "".join(rows) and all(row.startswith(" " * 40) for row in more)


def test_objects_have_labels_and_boxes():
    row = " ".join(demo.rows(answered("<OD>", DRAWN["<OD>"]["answer"]), 1, DRAWN["<OD>"]["answer"]))
    assert "star 76,212 351,541;" in row and "triangle 416,261 673,494" in row


def test_a_wrong_answer_does_not_match():
    (row,) = demo.rows(answered("<OCR>", "HELLO"), 1, DRAWN["<OCR>"]["answer"])
    assert "  0%  HELLO" in row


def test_the_closing_commands_are_in_the_readme(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.executable", str(ROOT / ".venv" / "bin" / "python"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line.strip() for line in demo.closing().splitlines() if line.startswith("    ")]
    assert len(commands) == 2 and all(command in readme for command in commands)
