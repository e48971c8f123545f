"""Answers as lines of text on a terminal."""

from __future__ import annotations

import re

import pytest

from florence2.answers import Boxes, TextAnswer
from florence2_client import Result
from florence2_client.cli.console import answer_lines, growing_text

SIZE = (1000, 1000)
CAT, DOG = "cat<loc_1><loc_2><loc_3><loc_4>", "dog<loc_5><loc_6><loc_7><loc_1000>"
HAT = "hat<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6></poly>"
BOXES, POLYGONS = (
    ["label", "confidence", "box (x1,y1 x2,y2)"],
    ["label", "confidence", "points", "extent (x1,y1 x2,y2)"],
)


def cells(lines):
    return [re.split(r" {2,}", line) for line in lines]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a cat", [["a cat"]]),
        ("", [["(no text)"]]),
        (CAT, [["cat [2,2 4,4]"]]),
        ("cat<loc_3><loc_4><loc_1><loc_1000>", [["cat [2,4 4,1000]"]]),
        ("a point<loc_1><loc_2>", [["a point<loc_1><loc_2>"]]),
        (CAT + DOG, [BOXES, ["cat", "-", "2,2 4,4"], ["dog", "-", "6,6 8,1000"]]),
        (CAT + HAT, [BOXES, ["cat", "-", "2,2 4,4"], POLYGONS, ["hat", "-", "3", "2,2 6,6"]]),
        (f"Here are {CAT} and {DOG} in a garden.", [["Here are cat [2,2 4,4] and dog [6,6 8,1000] in a garden."]]),
    ],
)
def test_text_answers_show_what_they_locate(text, rows):
    """One region stands in its text; several objects are a table, unless there is more text than their labels."""
    assert cells(answer_lines(TextAnswer(text), SIZE)) == rows


def test_a_box_is_shown_from_its_smaller_corner():
    """Whatever the order in which the model named its corners."""
    assert cells(answer_lines(Boxes([[9.0, 8.0, 1.0, 2.0]], ["cat"], None, [0.25]), SIZE)) == [
        BOXES,
        ["cat", "0.25", "1,2 9,8"],
    ]


def test_growing_text_only_grows():
    """Each text that is shown of an answer begins with the one before, up to the complete answer."""
    shown = ""
    for end in range(len(CAT + DOG) + 1):
        text = (CAT + DOG)[:end]
        reason = "stop" if text == CAT + DOG else ""
        growing = growing_text(Result("<MY_TASK>", TextAnswer(text), text, reason, end, 0.0, SIZE))
        assert growing.startswith(shown)
        shown = growing
    assert shown == "cat [2,2 4,4]dog [6,6 8,1000]"
