"""The tokenizer against transformers' processor, on the bundled and on the real vocabulary."""

from __future__ import annotations

import functools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.config import LOCATION_BINS
from florence2.errors import CheckpointError
from florence2.parsing import Kind
from florence2.prompts import MAX_CHARACTERS
from florence2.tasks import TASKS
from florence2.tokenizer import Tokenizer
from tests.reference import CHECKPOINTS, DEMO, processor, shared

PHRASES = [
    "",
    "a green car.",
    "  two  spaces ",
    "naïve café 中文 😀",
    "don't\n\ttabs",
    "region <loc_1><loc_999>",
    "\x00",
    "<poly>a<sep>",
]


@functools.cache
def tokenizer(checkpoint=DEMO):
    return Tokenizer(checkpoint / "tokenizer.json")


def their_decode(ids, checkpoint):
    [text] = processor(checkpoint).batch_decode([ids], skip_special_tokens=False)
    return text.replace("<s>", "").replace("</s>", "").replace("<pad>", "")


def spread(pieces):
    return [(piece.kind, piece.text) for piece in pieces]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("text", [task.prompt for task in TASKS.values()] + PHRASES)
def test_prompts_become_the_ids_behind_the_image_tokens(checkpoint, text):
    """What the whole processor gives, without the image's tokens."""
    theirs = processor(checkpoint)
    bos, eos = theirs.tokenizer.bos_token, theirs.tokenizer.eos_token
    expected = theirs.tokenizer(theirs.image_token * 3 + bos + text + eos, add_special_tokens=False).input_ids
    assert tokenizer(checkpoint).encode_prompt(text) == expected[3:]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@given(st.data())
def test_decoding_is_that_of_transformers(checkpoint, data):
    """Any ids, also such as spell broken UTF-8, between the control tokens that surround an answer."""
    known = len(processor(checkpoint).tokenizer)
    body = data.draw(st.lists(st.integers(3, known - 1), max_size=30))
    ids = [2, 0, 0, *body, 2, 1, 1]
    assert tokenizer(checkpoint).decode(ids) == their_decode(ids, checkpoint)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@given(st.data())
def test_pieces_hold_the_same_text_and_each_location_its_log_probability(checkpoint, data):
    """Nothing is lost or added between ids and pieces."""
    known = len(processor(checkpoint).tokenizer)
    ids = data.draw(st.lists(st.integers(0, known - 1), max_size=30))
    log_probs = [-float(position) for position in range(len(ids))]
    pieces = tokenizer(checkpoint).pieces(ids, log_probs)
    assert all(piece.text and (piece.kind is Kind.TEXT) == (piece.log_prob is None) for piece in pieces)
    for piece in pieces:
        if piece.kind is Kind.LOCATION:
            assert piece.text == f"<loc_{piece.location}>"
            assert ids[int(-piece.log_prob)] == processor(checkpoint).tokenizer.convert_tokens_to_ids(piece.text)
    if not {0, 1, 2} & set(ids):
        assert "".join(piece.text for piece in pieces) == tokenizer(checkpoint).decode(ids)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_characters_spread_over_tokens_stay_whole(checkpoint):
    """A character's bytes may be several tokens; transformers' decoding token by token garbles them."""
    ids = tokenizer(checkpoint).encode_prompt("中文😀<loc_5><loc_6>é<sep><poly></poly>")
    assert spread(tokenizer(checkpoint).pieces(ids, [0.0] * len(ids))) == [
        (Kind.TEXT, "中文😀"),
        (Kind.LOCATION, "<loc_5>"),
        (Kind.LOCATION, "<loc_6>"),
        (Kind.TEXT, "é"),
        (Kind.SEPARATOR, "<sep>"),
        (Kind.POLYGON, "<poly>"),
        (Kind.POLYGON_END, "</poly>"),
    ]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@given(st.data())
def test_a_spelled_location_is_as_probable_as_all_its_tokens(checkpoint, data):
    """What ordinary tokens spell is a token too, between any text and whatever tokens spell it."""
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=3)
    parts = [data.draw(text), "<loc_1000>", data.draw(text), "<loc_7>", data.draw(text), "<sep>", data.draw(text)]
    ids = [id for part in parts for id in processor(checkpoint).tokenizer.encode(part, add_special_tokens=False)]
    log_probs = [-(2.0**-place) for place in range(len(ids))]
    pieces = tokenizer(checkpoint).pieces(ids, log_probs)
    assert "".join(piece.text for piece in pieces) == "".join(parts)
    edge, seven = (piece for piece in pieces if piece.kind is Kind.LOCATION)
    starts = [i for i in range(len(ids)) if tokenizer(checkpoint).decode(ids[i:]).startswith("<loc_1000>")]
    ends = [i for i in range(len(ids)) if tokenizer(checkpoint).decode(ids[:i]).endswith("<loc_1000>")]
    assert (edge.location, edge.log_prob) == (999, sum(log_probs[starts[-1] : ends[0]]))
    assert ids[log_probs.index(seven.log_prob)] == processor(checkpoint).tokenizer.convert_tokens_to_ids("<loc_7>")


def test_a_token_that_ends_one_location_and_begins_the_next_counts_for_both():
    """The vocabulary has `><`."""
    real = tokenizer(shared("checkpoints/Florence-2-base"))
    ids = real.encode_prompt("<loc_1000><loc_1234>")[1:-1]
    texts = [real.decode([id]) for id in ids]
    assert texts == ["<", "loc", "_", "1000", "><", "loc", "_", "12", "34", ">"]
    pieces = real.pieces(ids, [-1.0, -0.0, -0.0, -2.0, -4.0, -0.0, -0.0, -8.0, -16.0, -0.0])
    assert [(piece.location, piece.log_prob) for piece in pieces] == [(999, -7.0), (999, -28.0)]


def test_published_ids_decode_as_published():
    """Token ids that the real checkpoints generated."""
    cases = json.loads(shared("samples/postprocess_cases.json").read_text())
    real = tokenizer(shared("checkpoints/Florence-2-base"))
    published = [case for case in cases if "generated_ids" in case]
    assert published
    for case in published:
        assert real.decode(case["generated_ids"]) == their_decode(
            case["generated_ids"], shared("checkpoints/Florence-2-base")
        )


def test_truncation_and_padding_of_a_fine_tune_are_switched_off(tmp_path):
    """Training scripts leave them in tokenizer.json, where they would cut prompts silently."""
    saved = json.loads((DEMO / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1}
    saved["padding"] |= {"pad_type_id": 0, "pad_token": "<pad>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    text = TASKS["<OD>"].prompt
    assert Tokenizer(tmp_path / "tokenizer.json").encode_prompt(text) == tokenizer().encode_prompt(text)


def test_a_tokenizer_without_location_tokens_is_refused(tmp_path):
    """Such as the file of Microsoft's repositories, whose code adds them later."""
    saved = json.loads((DEMO / "tokenizer.json").read_text())
    saved["added_tokens"] = saved["added_tokens"][:5]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match=f"<loc_{LOCATION_BINS - 1}>"):
        Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\x00"])
def test_a_damaged_or_missing_file_is_refused(tmp_path, content):
    """The error names the file."""
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(path)


@pytest.mark.parametrize("character", ["a", " ", "<", "-", "é", "中", "😀", "a1B!"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_prompt_of_the_longest_accepted_text_is_tokenized_in_time(checkpoint, character):
    """Thousands of letters without a space are one word to the tokenizer."""
    ours, text = tokenizer(checkpoint), (character * MAX_CHARACTERS)[:MAX_CHARACTERS]
    start = time.thread_time()
    assert len(ours.encode_prompt(text)) > 100
    assert time.thread_time() - start < 0.2
