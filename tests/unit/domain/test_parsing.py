"""The answer grammars against transformers' post-processing, and the cases in which it loses what the model said."""

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
from florence2.parsing import Piece, parse, pieces_from_text, without_half_character, without_open_end
from florence2.tasks import TASKS, Grammar
from florence2.tokenizer import Tokenizer
from tests.reference import DEMO, processor, shared

BANNED = set(processor().post_processor.banned_grounding_tokens)
TOKENIZER = Tokenizer(DEMO / "tokenizer.json")
GRAMMARS_OF_LISTS = [grammar for grammar in Grammar if grammar is not Grammar.TEXT]

# What transformers' patterns can read: printable ASCII without `<`, not blank.
labels = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<"), min_size=1).filter(
    str.strip
)
sizes = st.tuples(st.integers(1, 8000), st.integers(1, 8000))


def locations(minimum, maximum=None, step=1):
    """Text of as many location tokens."""
    counts = st.integers(minimum // step, (maximum or minimum) // step).map(lambda count: count * step)
    runs = counts.flatmap(lambda count: st.lists(st.integers(0, 999), min_size=count, max_size=count))
    return runs.map(lambda run: "".join(f"<loc_{location}>" for location in run))


def joined(*parts):
    return st.tuples(*parts).map("".join)


def many(part, separator=""):
    return st.lists(part, min_size=1, max_size=4).map(separator.join)


outlines = many(locations(4, 12), "<sep>")
instances = many(outlines.map("<poly>{}</poly>".format))
WELL_FORMED = {
    Grammar.TEXT: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<")),
    Grammar.OCR: many(joined(labels, locations(8))),
    Grammar.LABELED_BOXES: many(joined(labels, locations(4, 14))),
    Grammar.GROUNDING: many(joined(labels | st.sampled_from(sorted(BANNED)), locations(4, 14))),
    Grammar.BARE_BOXES: locations(0, 40),
    Grammar.POLYGONS: outlines | instances,
    Grammar.BOXES_OR_POLYGONS: many(joined(labels, locations(4, 14))) | many(joined(labels, instances)),
}
tokens = st.sampled_from(["<loc_0>", "<loc_999>", "<sep>", "<poly>", "</poly>", "<od>"]) | locations(1, 9)
words = st.sampled_from(["a", "é", "中", "\n", " ", "<", "it", "\x00", "<obj>", "<ground>", "<loc_>", "<loc_٣>"])
impossible = st.sampled_from(["<loc_1000>", "<loc_99999999999999999999>", "<s>", "</s>", "<pad>"])
ugly = st.lists(tokens | words | impossible).map("".join)


def theirs(task, text, size):
    [answer] = processor().post_process_generation(text=text, task=task, image_size=size).values()
    return answer


def ours(task, text, size=(1000, 1000)):
    return parse(TASKS[task].grammar, pieces_from_text(text), size, BANNED).to_json()


def same(ours, theirs, slack):
    """Equal, with our floats at most `slack` outside the whole pixel to which transformers truncates its float32."""
    if isinstance(theirs, dict):
        return all(same(ours[key], theirs[key], slack) for key in theirs) and not any(
            ours[key] for key in ours.keys() - theirs
        )
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(same(a, b, slack) for a, b in zip(ours, theirs, strict=True))
    if isinstance(theirs, str):
        return ours == theirs
    return theirs - slack <= ours < theirs + 1 + slack


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
@given(data=st.data(), size=sizes, start=st.sampled_from(["", "<s>", "</s><s>", "</s><s><s><s>"]))
def test_well_formed_answers_are_read_as_by_transformers(task, data, size, start):
    """On everything its patterns were made for, up to its truncation to whole pixels."""
    text = start + data.draw(WELL_FORMED[task.grammar]) + "</s>"
    assert same(ours(task.token, text, size), theirs(task.token, text, size), slack=max(size) * 1e-6)


@pytest.mark.parametrize("grammar", Grammar)
@given(text=ugly, size=sizes)
def test_no_answer_is_too_ugly(grammar, text, size):
    """Any text gives an answer that is JSON, with lists of equal length and coordinates inside the image."""
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
    """The way by token ids, which the server takes, gives the answer of the way by text."""
    ids = TOKENIZER.encode_prompt(text)
    by_ids = parse(grammar, TOKENIZER.pieces(ids, [-1.0] * len(ids)), (640, 480), BANNED)
    by_text = parse(grammar, pieces_from_text(TOKENIZER.decode(ids)), (640, 480), BANNED)
    if hasattr(by_ids, "scores"):
        assert by_ids.scores == pytest.approx([math.exp(-1)] * len(by_ids.bboxes))
        by_ids, by_text = dataclasses.replace(by_ids, scores=None), dataclasses.replace(by_text, scores=None)
    assert by_ids == by_text


def read(grammar, text, size=(1000, 1000)):
    """The answer by token ids, as the server reads it; tokens that the vocabulary lacks are spelled out."""
    ids = TOKENIZER.encode_prompt(text)
    return parse(grammar, TOKENIZER.pieces(ids, [-1.0] * len(ids), [-1.0] * len(ids)), size, BANNED)


@given(st.sampled_from(GRAMMARS_OF_LISTS), ugly)
def test_locations_beyond_the_image_count_as_its_edges(grammar, text):
    """However many tokens spell them, each counts as one; scores are the lower the more of them are unlikely."""
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


def test_spelled_polygon_marks_are_marks():
    """In ordinary tokens they outline as real ones do."""
    letters = processor().tokenizer.get_vocab()
    text = "hat<poly><loc_1><loc_2><loc_3><loc_4><sep><loc_5><loc_6><loc_7><loc_8></poly>"
    pieces = TOKENIZER.pieces([letters[letter] for letter in text], [0.0] * len(text))
    assert parse(Grammar.BOXES_OR_POLYGONS, pieces, (1000, 1000), ()) == BoxesAndPolygons(
        [], [], [[[1.5, 2.5, 3.5, 4.5], [5.5, 6.5, 7.5, 8.5]]], ["hat"], []
    )


# What transformers' patterns lose or garble, and what is right instead, in an image of 1000 x 1000.
OUTLINE, CORNERS = "<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6>", "<loc_7><loc_8><loc_9><loc_10>"
POLYGON, BOX = [1.5, 2.5, 3.5, 4.5, 5.5, 6.5], [7.5, 8.5, 9.5, 10.5]
KEPT = [
    ("letters beyond ASCII", "<OD>", f"café 中文😀{CORNERS}", {"bboxes": [BOX], "labels": ["café 中文😀"]}),
    ("a line break in a label", "<OD>", f"a\nb{CORNERS}", {"bboxes": [BOX], "labels": ["a\nb"]}),
    ("< in a label", "<DENSE_REGION_CAPTION>", f"a < b{CORNERS}", {"bboxes": [BOX], "labels": ["a < b"]}),
    ("boxes without label", "<OD>", f"{CORNERS}{CORNERS}b{CORNERS}", {"bboxes": [BOX] * 3, "labels": ["", "", "b"]}),
    ("stray markup", "<OD>", f"<obj>car{CORNERS}", {"bboxes": [BOX], "labels": ["car"]}),
    ("bins there are not", "<OD>", "a<loc_1000><loc_7><loc_7><loc_9999>", {"bboxes": [[999.5, 7.5, 7.5, 999.5]]}),
    ("bins below the first", "<OD>", "a<loc_-1><loc_7><loc_-30><loc_8>", {"bboxes": [[0.5, 7.5, 0.5, 8.5]]}),
    (
        "a separator of phrases",
        "<OD>",
        f"cat{CORNERS}<and>dog{CORNERS}",
        {"bboxes": [BOX] * 2, "labels": ["cat", "dog"]},
    ),
    ("phrases that share a box", "<OD>", f"a<and> b<and>{CORNERS}", {"bboxes": [BOX] * 2, "labels": ["a", "b"]}),
    (
        "bins there are not",
        "<REGION_PROPOSAL>",
        "<loc_0><loc_7><loc_1000><loc_8>",
        {"bboxes": [[0.5, 7.5, 999.5, 8.5]]},
    ),
    ("markup", "<OCR_WITH_REGION>", f"<ocr>a<and>b{CORNERS * 2}</ocr>", {"quad_boxes": [BOX * 2], "labels": ["a b"]}),
    (
        "a separator of phrases",
        "<OPEN_VOCABULARY_DETECTION>",
        f"a<and>b<poly>{OUTLINE}</poly><and>c{CORNERS}",
        {"polygons": [[POLYGON]] * 2, "polygons_labels": ["a", "b"], "bboxes": [BOX], "bboxes_labels": ["c"]},
    ),
    ("stray markup", "<CAPTION_TO_PHRASE_GROUNDING>", f"<ground>it<obj>{CORNERS}", {"bboxes": [], "labels": []}),
    ("letters beyond ASCII", "<CAPTION_TO_PHRASE_GROUNDING>", f"é{CORNERS}", {"bboxes": [BOX], "labels": ["é"]}),
    ("a line break", "<OCR_WITH_REGION>", f"a\nb{CORNERS * 2}", {"quad_boxes": [BOX * 2], "labels": ["a\nb"]}),
    (
        "half a line before",
        "<OCR_WITH_REGION>",
        f"a{CORNERS}b{CORNERS * 2}",
        {"quad_boxes": [BOX * 2], "labels": ["b"]},
    ),
    ("padding", "<CAPTION>", "</s><s> a cat </s><pad><pad>", "a cat"),
    (
        "an unclosed polygon",
        "<REGION_TO_SEGMENTATION>",
        f"<poly>{OUTLINE}</poly><poly>{OUTLINE}",
        {"polygons": [[POLYGON]] * 2},
    ),
    (
        "an unclosed polygon",
        "<OPEN_VOCABULARY_DETECTION>",
        f"<poly>{OUTLINE}</poly>é<poly>{OUTLINE}",
        {"polygons": [[POLYGON]] * 2, "polygons_labels": ["", "é"], "bboxes": []},
    ),
    (
        "a box behind polygons",
        "<OPEN_VOCABULARY_DETECTION>",
        f"a<poly>{OUTLINE}</poly>b{CORNERS}",
        {"polygons": [[POLYGON]], "polygons_labels": ["a"], "bboxes": [BOX], "bboxes_labels": ["b"]},
    ),
]


@pytest.mark.parametrize("task,text,expected", [pytest.param(*case[1:], id=f"{case[0]} {case[1]}") for case in KEPT])
def test_what_transformers_loses_is_kept(task, text, expected):
    """Each case is read differently by transformers, and wrongly."""
    answer = ours(task, text)
    assert answer == (expected if isinstance(expected, str) else {**answer, **expected})
    assert not same(answer, theirs(task, text, (1000, 1000)), slack=0.01)


@pytest.mark.parametrize(
    "task", ["<OD>", "<DENSE_REGION_CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>", "<OPEN_VOCABULARY_DETECTION>"]
)
@pytest.mark.parametrize(
    "text,count", [("a cat", 0), ("", 0), ("cat<loc_1><loc_2>", 0), (f"cat{CORNERS}dog<loc_1><loc_2>", 1)]
)
def test_unfinished_and_unstructured_answers_leave_no_boxes(task, text, count):
    """What was cut off is dropped; what was finished before stays."""
    assert len(ours(task, text)["bboxes"]) == count


def test_fractions_of_pixels_are_kept():
    """Coordinates are doubles without the noise of float32, even in an image of one pixel."""
    assert ours("<OD>", "x<loc_52><loc_333><loc_0><loc_999>", (640, 480))["bboxes"] == [[33.6, 160.08, 0.32, 479.76]]
    assert ours("<OD>", "x<loc_0><loc_0><loc_999><loc_999>", (1, 1))["bboxes"] == [[0.0005, 0.0005, 0.9995, 0.9995]]


def test_region_answers_keep_their_location_tokens():
    """transformers keeps them too; removing them is the client's choice."""
    assert (
        ours("<REGION_TO_CATEGORY>", "</s><s>car<loc_1><loc_2><loc_3><loc_4></s>") == "car<loc_1><loc_2><loc_3><loc_4>"
    )


def scored(*tokens):
    """Pieces of (text, log probability) pairs."""
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


def weighed(*tokens):
    """Pieces of (text, probability mass) pairs."""
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


def test_outlines_are_not_doubted_for_their_length():
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


def test_scores_are_absent_where_log_probabilities_are_unknown():
    """No box has one, rather than some a made-up one."""
    assert parse(Grammar.LABELED_BOXES, pieces_from_text(f"a{CORNERS}"), (1000, 1000), ()) == Boxes([BOX], ["a"], None)


def test_recorded_outputs_are_read_as_by_transformers():
    """Outputs of the published checkpoints and probes, but for what transformers loses in them."""
    better = {"mlxcel/od_bare_locs", "mlxcel/od_non_ascii", "mlxcel/od_multibyte", "mlxcel/od_newline"}
    better |= {"hf_processing/grounding", "hf/test_large_model_batching_inference_sdpa/1", "probe/caption_pad"}
    better |= {"probe/ocr_newline_multi", "probe/ovd_mixed_poly_then_box", "probe/od_ground_obj_tags"}
    better |= {"probe/pg_ground_tag", "probe/od_loc1000", "probe/od_emoji"}
    different = set()
    for case in json.loads(shared("samples/postprocess_cases.json").read_text()):
        grammar = TASKS[case["task"]].grammar if case["task"] in TASKS else Grammar.TEXT
        answer = parse(grammar, pieces_from_text(case["raw_text"]), tuple(case["image_size"]), BANNED).to_json()
        if not same(answer, case["native"][case["task"]], slack=0.02):
            different.add(case["id"])
    assert different == better


SIZE = (640, 480)
FOUR = st.lists(st.integers(0, 999) | st.integers(-3, 1003), min_size=4, max_size=4)


@st.composite
def boxes_and_polygons(draw):
    """What a model writes: labels, each with boxes or marked polygons."""
    text = ""
    for label in draw(st.lists(st.sampled_from(["car", "dog", "a red hat"]), min_size=1, max_size=3)):
        locations = ["".join(f"<loc_{n}>" for n in four) for four in draw(st.lists(FOUR, min_size=1, max_size=3))]
        text += label + (f"<poly>{'<sep>'.join(locations)}</poly>" if draw(st.booleans()) else "".join(locations))
    return text


@given(st.sampled_from(GRAMMARS_OF_LISTS), boxes_and_polygons())
def test_an_answer_so_far_holds_only_what_stays(grammar, text):
    """Token for token: lists never shrink, and what is in them does not change, but that an instance gets outlines."""
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
    """Not one token later, and a quad with its eighth."""
    box = pieces_from_text("car<loc_1><loc_2><loc_3><loc_4>")
    assert without_open_end(Grammar.LABELED_BOXES, box) == box
    assert len(parse(Grammar.LABELED_BOXES, box, SIZE, ()).bboxes) == 1
    assert not parse(Grammar.LABELED_BOXES, box[:-1], SIZE, ()).bboxes
    quad = pieces_from_text("STOP" + "<loc_9>" * 8)
    assert len(parse(Grammar.OCR, quad, SIZE, ()).quad_boxes) == 1
    assert not parse(Grammar.OCR, quad[:-1], SIZE, ()).quad_boxes


@given(st.text(max_size=12), st.integers(0, 40))
def test_half_a_character_is_left_out_of_the_text_so_far(text, cut):
    """However its bytes are cut, the text so far is a beginning of the whole."""
    so_far = without_half_character(text.encode()[:cut].decode(errors="replace"))
    assert text.startswith(so_far)
