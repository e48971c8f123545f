"""Code and documents use the field's words, one word for one thing: tools/language.py lists the words to avoid.

A line that must use one of them, because it quotes another program for example, says `sic` in a comment.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import language
from tools.language import words_to_avoid

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".md", ".pbtxt", ".yaml", ".yml", ".toml", ".js", ".css", ".tpl", ".txt", ".sh", ""}
LISTS = (Path(__file__), Path(language.__file__))


def test_files_use_the_fields_words():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    problems = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in paths
        if path.suffix in SUFFIXES and path.is_file() and path not in LISTS
        for problem in words_to_avoid(path.read_text(encoding="utf-8"))
    ]
    assert not problems, "\n" + "\n".join(problems)


AVOIDED = (
    "a picture; PICTURE_SIZE; make_pictures(); clients who wait; beside it; its head alone; "
    "by gRPC; quantised; neighbours"
)
FINE = "besides that; leave it alone; the history; patterns; a promise; people who read; picture  # sic; standalone"


@pytest.mark.parametrize("line", AVOIDED.split("; "))
def test_a_word_to_avoid_is_found(line):
    assert len(words_to_avoid(line)) == 1


@pytest.mark.parametrize("line", FINE.split("; "))
def test_other_words_are_fine(line):
    assert words_to_avoid(line) == []


def test_a_docstring_begins_with_a_verb():
    assert words_to_avoid('"""Of one request."""') and not words_to_avoid('"""Official."""')
