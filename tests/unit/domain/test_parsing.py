"""The answer grammars against transformers' post-processing, and the cases in which it loses what the model said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.parsing import parse, pieces_from_text
from florence2.tasks import TASKS, Grammar
from tests.reference import processor, shared
from tests.unit.domain.generated_texts import BANNED, locations, sizes

# What transformers' patterns can read: printable ASCII without `<`, not blank.
labels = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<"), min_size=1).filter(
    str.strip
)


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
    """These are all answers that its patterns were made for. It truncates coordinates to whole pixels."""
    text = start + data.draw(WELL_FORMED[task.grammar]) + "</s>"
    assert same(ours(task.token, text, size), theirs(task.token, text, size), slack=max(size) * 1e-6)


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
