"""docs/operations.md stays true: its sentences are the code's, its parameters the configurations'."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from florence2_export.repository import read_config

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SYMPTOMS = re.findall(r"^\| `(.+?)` \|", PAGE.partition("## Troubleshooting")[2], re.M)
OF_TRITON = {"This API is restricted, expecting header 'disabled'"}  # tests/live/test_security.py hears it
VARIES = re.compile(r"…|\{[^{}]*\}")


@functools.cache
def said() -> str:
    """All sources of those who speak, with broken strings joined and what is filled in marked."""
    files = [path for room in ("florence2", "client") for path in sorted((ROOT / room).rglob("*.py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return VARIES.sub("…", re.sub(r'"\s*\n?\s*f?"', "", text))


@pytest.mark.parametrize("symptom", sorted(set(SYMPTOMS) - OF_TRITON))
def test_the_code_says_each_sentence_of_the_guide(symptom):
    """It says each part between what varies."""
    for part in (part.strip(" .;:()") for part in VARIES.split(symptom)):
        assert part in said(), f"nothing says {part!r}"


def test_the_parameters_are_those_of_the_decoder():
    """With their defaults, all of them."""
    listed = dict(re.findall(r"^\| `(\w+)` \| `florence2_decoder` \((\d+)\)", PAGE, re.M))
    parameters = read_config(ROOT / "model_repository" / "florence2_decoder").parameters
    assert listed == {name: value.string_value for name, value in parameters.items()}
