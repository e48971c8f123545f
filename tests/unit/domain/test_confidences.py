"""The scores and confidences of what is found."""

from __future__ import annotations

import dataclasses
import math

import pytest

from florence2.answers import Boxes
from florence2.parsing import Piece, parse, pieces_from_text
from florence2.tasks import Grammar
from tests.unit.domain.generated_texts import BANNED, TOKENIZER


def scored(*tokens):
    """Return the pieces of pairs (text, log probability)."""
    pieces = [(pieces_from_text(text)[0], log_prob) for text, log_prob in tokens]
    return [Piece(piece.kind, piece.text, piece.location, log_prob) for piece, log_prob in pieces]


@pytest.mark.parametrize(
    "grammar", [Grammar.LABELED_BOXES, Grammar.BARE_BOXES, Grammar.GROUNDING, Grammar.BOXES_OR_POLYGONS]
)
def test_a_score_is_the_geometric_mean_of_the_boxes_own_tokens(grammar):
    """Neither the label, nor a dropped phrase, nor leftover locations count."""
    corners = [(f"<loc_{n}>", math.log(p)) for n, p in enumerate([0.5, 0.5, 0.125, 0.125])]
    sure = [("<loc_7>", 0.0)] * 4
    cat = scored(("cat", None), *corners, *sure, ("<loc_9>", -9.0))
    assert parse(grammar, cat, (10, 10), BANNED).scores == pytest.approx([0.25, 1.0])
    banned = scored(("it", None), *corners, ("cat", None), *sure)
    assert parse(grammar, banned, (10, 10), BANNED).scores[-1] == 1.0


def test_scores_are_absent_where_log_probabilities_are_unknown():
    """There is no made-up score for some boxes."""
    pieces = pieces_from_text("a<loc_7><loc_8><loc_9><loc_10>")
    assert parse(Grammar.LABELED_BOXES, pieces, (1000, 1000), ()) == Boxes([[7.5, 8.5, 9.5, 10.5]], ["a"], None)


def weighed(*tokens):
    """Return the pieces of pairs (text, probability mass)."""
    return [dataclasses.replace(pieces_from_text(text)[0], log_mass=math.log(mass)) for text, mass in tokens]


FOUR_MASSES = [("<loc_1>", 0.9), ("<loc_2>", 0.8), ("<loc_3>", 0.5), ("<loc_4>", 1.0)]  # 0.36 together


@pytest.mark.parametrize("grammar", [Grammar.LABELED_BOXES, Grammar.GROUNDING, Grammar.BOXES_OR_POLYGONS])
def test_a_confidence_is_the_probability_of_the_label_and_the_four_edges(grammar):
    """Each box of a label counts the label, but neither another box nor a dropped phrase nor leftover locations."""
    cat = weighed(("cat", 0.5), *FOUR_MASSES, *[("<loc_7>", 1.0)] * 4, ("<loc_9>", 0.1), ("dog", 0.1), *FOUR_MASSES)
    assert parse(grammar, cat, (10, 10), BANNED).confidences == pytest.approx([0.18, 0.5, 0.036])
    if grammar is Grammar.GROUNDING:
        banned = weighed(("it", 0.1), *FOUR_MASSES, ("cat", 0.5), *FOUR_MASSES)
        assert parse(grammar, banned, (10, 10), BANNED).confidences == pytest.approx([0.18])


def test_the_confidence_of_a_proposal_is_that_of_its_edges():
    """There is no label to doubt."""
    assert parse(Grammar.BARE_BOXES, weighed(*FOUR_MASSES), (10, 10), ()).confidences == pytest.approx([0.36])


def test_long_outlines_have_no_lower_confidence():
    """The geometric mean of all points stands in for each of four edges; marks do not count."""
    twice = [*FOUR_MASSES, ("<sep>", 0.01), *FOUR_MASSES]
    assert parse(Grammar.OCR, weighed(("STOP", 0.5), *FOUR_MASSES, *FOUR_MASSES), (10, 10), ()).confidences == [
        pytest.approx(0.18)
    ]
    assert parse(Grammar.POLYGONS, weighed(*twice), (10, 10), ()).confidences == pytest.approx([0.36])
    mixed = weighed(("hat", 0.5), *FOUR_MASSES, ("<poly>", 0.01), *twice, ("</poly>", 0.01))
    answer = parse(Grammar.BOXES_OR_POLYGONS, mixed, (10, 10), ())
    assert (answer.confidences, answer.polygons_confidences) == (pytest.approx([0.18]), pytest.approx([0.18]))


def test_the_mass_of_a_text_is_that_of_all_its_tokens():
    """Between the locations; tokens that are no text, such as the forced `<s>`, do not count."""
    ids = TOKENIZER.encode_prompt("a red STOP sign<loc_7>")
    masses = [-(2.0**place) for place in range(len(ids))]
    text, location = TOKENIZER.pieces(ids, masses, masses)
    assert (text.log_mass, location.log_mass) == (sum(masses[1:-2]), masses[-2])
    assert len(ids) > 5
