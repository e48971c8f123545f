"""Code and documents use the field's words, one word for one thing.

A line that must use a word to avoid, because it quotes another program for example, says `sic` in a comment.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".md", ".pbtxt", ".yaml", ".yml", ".toml", ".js", ".css", ".tpl", ".txt", ".sh", ""}
# Not rewritten yet. Remove a path when its prose is finished.
PENDING = (
    *(".ci/", "bench/", "client/", "deploy/", "docs/", "export/", "florence2/", "model_repository/", "tests/"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "Makefile", "README.md", "docker-compose.yml", "pyproject.toml"),
)
WORDS = {  # what to avoid, as a word or as a part of a name: what to write instead
    "pictures?": "image",
    "callers?|askers?": "client",
    "(who|whom)(so)?ever|(no|every|any|some)body": "clients that, every client, no process, …",
    "(clients?|servers?|process(es)?|threads?|requests?|models?|programs?|workers?) (who|whom)": "that, which",
    "rude(ness|ly)?": "misbehaving",
    "story": "report, description, summary",
    "patien(ce|t|tly)": "wait, timeout, retry",
    "lettering": "text",
    "twins?": "copy, variant, streaming model",
    "surfaces?": "interface, API",
    "by (gRPC|HTTP)": "over gRPC, over HTTP",
    "beside": "next to, besides, at the same time as",
    "(?<!leave it )(?<!leaves it )(?<!leave them )(?<!left )alone": "only, by itself",
    "(colour|neighbour|behaviour|favour|honour)(s|ed|ing|ful)?": "color, neighbor, behavior, …",
    "centred?|grey|licence|artefacts?|catalogue|analyse[sd]?": "the American spelling",
    "(normal|quant|initial|serial|optim|recogn|token|organ|summar|minim|maxim|custom|util|visual|categor|synchron|emphas"
    "|special|parametr)is(e|es|ed|er|ing|ation)": "-ize, -ization",
}
PATTERNS = {
    **{re.compile(rf"(?<![A-Za-z])(?:{avoid})(?![a-z])", re.IGNORECASE): write for avoid, write in WORDS.items()},
    re.compile(r'"""(Of|As) '): "an imperative verb",
}
SIC = re.compile(r"(#|//|<!--).*\bsic\b")


def found_in(text: str) -> list[str]:
    """Return `line number: word -> what to write` for each word to avoid."""
    return [
        f"{number}: {hit[0]!r} -> {write}"
        for number, line in enumerate(text.splitlines(), 1)
        if not SIC.search(line)
        for pattern, write in PATTERNS.items()
        for hit in pattern.finditer(line)
    ]


def test_files_use_the_fields_words():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name and not name.startswith(PENDING)]
    problems = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in paths
        if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__)
        for problem in found_in(path.read_text(encoding="utf-8"))
    ]
    assert not problems, "\n" + "\n".join(problems)


AVOIDED = (
    "a picture; PICTURE_SIZE; make_pictures(); clients who wait; beside it; its head alone; "
    "by gRPC; quantised; neighbours"
)
FINE = "besides that; leave it alone; the history; patterns; a promise; people who read; picture  # sic; standalone"


@pytest.mark.parametrize("line", AVOIDED.split("; "))
def test_a_word_to_avoid_is_found(line):
    assert len(found_in(line)) == 1


@pytest.mark.parametrize("line", FINE.split("; "))
def test_other_words_are_fine(line):
    assert found_in(line) == []


def test_a_docstring_begins_with_a_verb():
    assert found_in('"""Of one request."""') and not found_in('"""Official."""')
