"""The pages of the Python client stay true: the table of methods is the code's, and the scores are the demo's."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from florence2_client import Client

DOCS = Path(__file__).parents[3] / "docs"


def test_table_lists_every_method():
    """Method, task, further argument and kind of answer match the signatures."""
    page = (DOCS / "client.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(<\w+>)` \| (\w*) ?\| `(\w+)` \|$", page, re.MULTILINE)
    kinds = {"TextT": "TextAnswer", "BoxesT": "Boxes", "QuadsT": "Quads", "PolygonsT": "Polygons"}
    methods = []
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_") and name not in ("run", "ask", "caption_regions", "run_many", "stream", "close"):
            signature = inspect.signature(method)
            extra = "".join(list(signature.parameters)[2:-1])
            token = re.search(r"`(<\w+>)`", inspect.getdoc(method))
            kind = kinds.get(signature.return_annotation.partition(" | ")[0], "BoxesAndPolygons")
            methods.append((name, token and token[1], extra, kind))
    assert sorted(rows) == sorted(methods)


def test_correct_boxes_have_the_scores_that_are_explained(server):
    """The demo's two objects are found where they are, with scores of about 0.04."""
    demo = Path(__file__).parents[3] / "demo" / "images"
    shapes = json.loads((demo / "scene.json").read_text())["scene"]["shapes"]
    with Client(server.grpc_url) as client:
        answer = client.detect(demo / "scene.png").answer
    assert "their scores are 0.04" in (DOCS / "answers.md").read_text(encoding="utf-8")
    assert [round(score, 2) for score in answer.scores] == [0.04, 0.04]
    assert answer.bboxes == [pytest.approx([768 * edge for edge in shape["box"]], abs=0.02 * 768) for shape in shapes]
