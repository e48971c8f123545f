"""The answer so far, while the model is still generating."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from florence2.parsing import parse, pieces_from_text, without_half_character, without_open_end
from florence2.tasks import Grammar
from tests.unit.domain.generated_texts import GRAMMARS_OF_LISTS, TOKENIZER, read

SIZE = (640, 480)
FOUR = st.lists(st.integers(0, 999) | st.integers(-3, 1003), min_size=4, max_size=4)


@st.composite
def boxes_and_polygons(draw):
    """Draw what a model writes: labels, each with boxes or marked polygons."""
    text = ""
    for label in draw(st.lists(st.sampled_from(["car", "dog", "a red hat"]), min_size=1, max_size=3)):
        locations = ["".join(f"<loc_{n}>" for n in four) for four in draw(st.lists(FOUR, min_size=1, max_size=3))]
        text += label + (f"<poly>{'<sep>'.join(locations)}</poly>" if draw(st.booleans()) else "".join(locations))
    return text


@given(st.sampled_from(GRAMMARS_OF_LISTS), boxes_and_polygons())
def test_an_answer_so_far_holds_only_what_stays(grammar, text):
    """Token by token, lists never shrink. What is in them stays, except that an instance may get more outlines."""
    ids = TOKENIZER.encode_prompt(text)
    whole = read(grammar, text, SIZE).to_json()
    for end in range(len(ids) + 1):
        pieces = TOKENIZER.pieces(ids[:end], [-1.0] * end, [-1.0] * end)
        so_far = parse(grammar, without_open_end(grammar, pieces), SIZE, ()).to_json()
        outlines = ("polygons", "polygons_confidences" if "bboxes" in so_far else "confidences")
        for key, items in so_far.items():
            if "polygons" in so_far and key in outlines:
                assert len(items) <= len(whole[key])
            if key == "polygons":
                assert all(all_[: len(part)] == part for part, all_ in zip(items, whole[key], strict=False))
            elif "polygons" not in so_far or key not in outlines:
                assert items == whole[key][: len(items)]


def test_a_box_is_there_with_its_fourth_location():
    """It is not one token later. A quad is there with its eighth."""
    box = pieces_from_text("car<loc_1><loc_2><loc_3><loc_4>")
    assert without_open_end(Grammar.LABELED_BOXES, box) == box
    assert len(parse(Grammar.LABELED_BOXES, box, SIZE, ()).bboxes) == 1
    assert not parse(Grammar.LABELED_BOXES, box[:-1], SIZE, ()).bboxes
    quad = pieces_from_text("STOP" + "<loc_9>" * 8)
    assert len(parse(Grammar.OCR, quad, SIZE, ()).quad_boxes) == 1
    assert not parse(Grammar.OCR, quad[:-1], SIZE, ()).quad_boxes


@given(st.text(max_size=12), st.integers(0, 40))
def test_half_a_character_is_left_out_of_the_text_so_far(text, cut):
    """Wherever the bytes are cut, the text so far is the beginning of the whole text."""
    so_far = without_half_character(text.encode()[:cut].decode(errors="replace"))
    assert text.startswith(so_far)
