"""Prepare docstrings and signatures for the site. An extension of Griffe, which reads the code for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any, get_args

import griffe

from florence2.answers import Answer
from florence2_client.client import Client
from florence2_client.methods import TaskMethods

EXAMPLE = re.compile(r"^>>>.*\n?(?:^.+\n?)*", re.M)
DRAWING = re.compile(r"^.*\n(?:^[├│└].*\n?)+", re.M)
RETURNED = {  # TextT: Result[TextAnswer], and so on
    variable.__name__: re.sub(r"\w+\.", "", str(kind).replace(str(Answer), "Answer"))
    for variable, kind in zip(TaskMethods.__parameters__, get_args(Client.__orig_bases__[0]), strict=True)
}
VARIABLE = re.compile("|".join(rf"\b{name}\b" for name in RETURNED))


def as_markdown(docstring: str) -> str:
    """Return a docstring with its examples and drawings in fences."""
    text = DRAWING.sub(lambda found: f"```text\n{found[0].rstrip()}\n```\n", docstring)
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)


class Docstrings(griffe.Extension):
    """Turn docstrings into Markdown, and show what the methods of both clients return in Client."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.name == "__init__":
            obj.docstring = None  # the class says what its arguments are
        elif obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.name == "florence2_client":
            for method in pkg["methods.TaskMethods"].functions.values():
                for signature in [method, *(method.overloads or [])]:
                    signature.returns = VARIABLE.sub(lambda name: RETURNED[name[0]], str(signature.returns))
