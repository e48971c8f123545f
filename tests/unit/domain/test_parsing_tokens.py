"""Any tokens give an answer, also those that the vocabulary lacks and the model spells out in letters."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.answers import Boxes, BoxesAndPolygons
from florence2.parsing import parse, pieces_from_text
from florence2.tasks import Grammar
from tests.reference import processor
from tests.unit.domain.generated_texts import BANNED, GRAMMARS_OF_LISTS, TOKENIZER, read, sizes, tokens, ugly, words


@pytest.mark.parametrize("grammar", Grammar)
@given(text=ugly, size=sizes)
def test_any_text_gives_an_answer(grammar, text, size):
    """The answer is JSON, with lists of equal length and coordinates inside the image."""
    answer = parse(grammar, pieces_from_text(text), size, BANNED).to_json()
    json.dumps(answer, allow_nan=False)
    if grammar is Grammar.TEXT:
        return
    rows = [*answer.get("bboxes", []), *answer.get("quad_boxes", []), *chain(*answer.get("polygons", []))]
    assert all(row and len(row) % 2 == 0 for row in rows)
    assert all(0 < value < size[i % 2] for row in rows for i, value in enumerate(row))
    lengths = {key: len(value) for key, value in answer.items()}
    assert lengths.get("bboxes", 0) == lengths.get("bboxes_labels", lengths.get("labels") if "bboxes" in lengths else 0)


@pytest.mark.parametrize("grammar", Grammar)
@given(text=st.lists(tokens | words).map("".join))
def test_tokens_are_read_as_their_text_is(grammar, text):
    """The server reads token ids. Their text gives the same answer."""
    ids = TOKENIZER.encode_prompt(text)
    by_ids = parse(grammar, TOKENIZER.pieces(ids, [-1.0] * len(ids)), (640, 480), BANNED)
    by_text = parse(grammar, pieces_from_text(TOKENIZER.decode(ids)), (640, 480), BANNED)
    if hasattr(by_ids, "scores"):
        assert by_ids.scores == pytest.approx([math.exp(-1)] * len(by_ids.bboxes))
        by_ids, by_text = dataclasses.replace(by_ids, scores=None), dataclasses.replace(by_text, scores=None)
    assert by_ids == by_text


@given(st.sampled_from(GRAMMARS_OF_LISTS), ugly)
def test_locations_beyond_the_image_count_as_its_edges(grammar, text):
    """Each counts as one location, although several tokens spell it. A score is lower the more of them are unlikely."""
    clamped = re.sub("<loc_([0-9]+)>", lambda token: f"<loc_{min(int(token[1]), 999)}>", text)
    spelled, answer = read(grammar, text), read(grammar, clamped)
    for kind in {"scores", "confidences", "polygons_confidences"} & {*vars(answer)}:
        lower, higher = getattr(spelled, kind), getattr(answer, kind)
        assert all(low <= high + 1e-9 for low, high in zip(lower, higher, strict=True))
        spelled, answer = dataclasses.replace(spelled, **{kind: None}), dataclasses.replace(answer, **{kind: None})
    assert spelled == answer


STAR, TRIANGLE = [92.5, 277.5, 999.5, 704.5], [536.5, 329.5, 883.5, 639.5]
CUT_OFF = "star<loc_92><loc_277><loc_1000><loc_704>triangle<loc_536><loc_329><loc_883><loc_639>"


@pytest.mark.parametrize("grammar", [Grammar.LABELED_BOXES, Grammar.GROUNDING, Grammar.BOXES_OR_POLYGONS])
def test_objects_at_the_edge_are_found(grammar):
    """Their labels stay whole, and each score belongs to its own box."""
    answer = read(grammar, CUT_OFF)
    assert answer.bboxes == [STAR, TRIANGLE]
    assert (answer.labels if isinstance(answer, Boxes) else answer.bboxes_labels) == ["star", "triangle"]
    spelled = len(TOKENIZER.encode_prompt("<loc_1000>")) - 2
    assert answer.scores == pytest.approx([math.exp(-(3 + spelled) / 4), math.exp(-1)])


def test_a_location_that_is_cut_off_leaves_no_box():
    """Neither a box of three corners, nor a label."""
    assert read(Grammar.LABELED_BOXES, f"{CUT_OFF}cat<loc_1><loc_2><loc_3><loc_10") == read(
        Grammar.LABELED_BOXES, CUT_OFF
    )


def test_polygon_marks_may_be_spelled_in_letters():
    """They mean the same as the tokens of the vocabulary."""
    letters = processor().tokenizer.get_vocab()
    text = "hat<poly><loc_1><loc_2><loc_3><loc_4><sep><loc_5><loc_6><loc_7><loc_8></poly>"
    pieces = TOKENIZER.pieces([letters[letter] for letter in text], [0.0] * len(text))
    assert parse(Grammar.BOXES_OR_POLYGONS, pieces, (1000, 1000), ()) == BoxesAndPolygons(
        [], [], [[[1.5, 2.5, 3.5, 4.5], [5.5, 6.5, 7.5, 8.5]]], ["hat"], []
    )
