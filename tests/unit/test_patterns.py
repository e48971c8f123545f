"""Regular expressions take linear time on any text: one that does not lets a client occupy the server for minutes."""

from __future__ import annotations

import ast
import re
import time
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "florence2").rglob("*.py"), *(ROOT / "client" / "florence2_client").rglob("*.py")]
# What the patterns look for, and parts of it. A pattern with several ways to match a run of them tries all.
PARTS = [
    *["1", "1.", ".", "1e", "-", ":", "_1", ":1", " ", "\n", "a", "a ", "A", "=", "%", "%4", "é", "\\n"],
    *["<", ">", "<A", "<loc_", "<loc_1", "<loc_1>", "<and>", "<poly>", "in ensemble 'a', ", "[request id: ", "(1): "],
]
HEADS = ["", "<", "<loc_", "1,", '"', "data:", "loading: ", "failed to load '", "E1122 1:1 1 ", "Stub process '"]
LENGTH = 20_000


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
ANCHORED = {"match", "fullmatch"}  # all other functions look for a match at every position


def patterns() -> dict[str, tuple[re.Pattern, set[str]]]:
    """Return every pattern that is written as a literal in the server or the client, and the functions that use it."""
    uses = defaultdict(set)  # in the same file, or else in all
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=function):
                    uses[path, name].add(function)
                    uses[name].add(function)
    found = {}
    for path, tree in TREES.items():
        names = {id(node.value): node.targets[0].id for node in ast.walk(tree) if is_named(node)}
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="re"), attr=function),
                    args=[ast.Constant(value=str() | bytes() as pattern), *_],
                ) if function != "escape":
                    name = names.get(id(node), "")
                    functions = (uses[path, name] or uses[name]) if function == "compile" else {function}
                    used = {each if each in ANCHORED else "search" for each in functions or {"search"}}
                    found[f"{path.relative_to(ROOT)}:{node.lineno}"] = (re.compile(pattern), used)
    return found


def is_named(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)


PATTERNS = patterns()


def test_the_patterns_are_found():
    """Those of prompts, images and the log among them."""
    assert {"prompts", "images", "log"} <= {Path(place.split(":")[0]).stem for place in PATTERNS}


@pytest.mark.parametrize("place", PATTERNS)
def test_a_pattern_is_linear(place):
    """On each part, repeated, behind each head."""
    pattern, functions = PATTERNS[place]
    for head in HEADS:
        for part in PARTS:
            text = head + (part * LENGTH)[:LENGTH] + "!"
            start = time.thread_time()
            for function in functions:
                getattr(pattern, function)(text.encode() if isinstance(pattern.pattern, bytes) else text)
            assert time.thread_time() - start < 0.2, (head, part)
