"""Merging boxes and outlines: a perfect detector's answers about clipped parts must give the truth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.answers import Boxes, BoxesAndPolygons, Quads, TextAnswer
from florence2.errors import InternalError
from florence2_client.merging import View, merge
from florence2_client.tiling import tile_boxes
from tests import reference  # noqa: F401  the profile of hypothesis
from tests.unit.client.merging.parts import LEFT, RIGHT, SIZE, WHOLE, clipped, quad


def detect(truth, part, smallest=0):
    """A perfect detector's answer about a part of the image: each object of `truth` as far as it is there."""
    found = [(label, seen) for label, box in truth if (seen := clipped(box, part))]
    found = [(label, box) for label, box in found if max(box[2] - box[0], box[3] - box[1]) >= smallest]
    return Boxes([box for _, box in found], [label for label, _ in found], [0.5] * len(found))


def detected(truth, tiles, smallest=0):
    """The merged answer, where the whole image shows only what is not too small."""
    views = [View(WHOLE, detect(truth, WHOLE, smallest), whole=True)]
    views += [View(part, detect(truth, part)) for part in tile_boxes(SIZE, tiles)]
    merged = merge(views, by_label=True)
    return sorted(zip(merged.labels, map(tuple, merged.bboxes), strict=True))


OBJECTS = st.lists(
    st.tuples(
        st.sampled_from(["dog", "cat"]),
        st.tuples(st.integers(0, 900), st.integers(0, 700), st.integers(8, 400), st.integers(8, 400)),
    ),
    max_size=8,
).map(lambda found: [(label, (x, y, min(x + w, 1000), min(y + h, 800))) for label, (x, y, w, h) in found])


def are_apart(truth):
    """Whether no two objects of one label touch: those that do may look like one where a border cuts both."""
    boxes = [(label, (x1 - 12, y1 - 12, x2 + 12, y2 + 12)) for label, (x1, y1, x2, y2) in truth]
    return not any(
        label == other and clipped(box, rival)
        for index, (label, box) in enumerate(boxes)
        for other, rival in boxes[:index]
    )


@given(OBJECTS.filter(are_apart), st.sampled_from([(3, 2), (2, 4), 300, 450]), st.sampled_from([0, 100, 2000]))
def test_a_perfect_detectors_boxes_are_the_truth(truth, tiles, smallest):
    """Whether or not the whole image shows the large ones, and however the tiles cut them."""
    expected = sorted((label, tuple(map(float, box))) for label, box in truth)
    assert detected(truth, tiles, smallest) == expected


def merged_boxes(*views, by_label=True):
    """Merge views of (part, boxes, labels), the first of which is the whole image."""
    return merge(
        [View(part, Boxes(boxes, labels, None), whole=index == 0) for index, (part, boxes, labels) in enumerate(views)],
        by_label=by_label,
    )


def test_a_cut_box_gives_way_to_the_whole_one():
    """The left tile shows half of what the right one shows whole, with an edge that is off by some pixels."""
    merged = merged_boxes(
        (WHOLE, [], []), (LEFT, [[560, 104, 599, 196]], ["dog"]), (RIGHT, [[163, 100, 250, 200]], ["dog"])
    )
    assert merged.bboxes == [[563, 100, 650, 200]]


def test_a_box_in_two_tiles_is_one_unless_the_labels_differ():
    """Detectors of names tell objects apart by them; where labels are sentences, places decide."""
    views = (
        (WHOLE, [], []),
        (LEFT, [[450, 100, 550, 200]], ["red car"]),
        (RIGHT, [[52, 103, 148, 197]], ["a car"]),
    )
    assert merged_boxes(*views).labels == ["red car", "a car"]
    assert merged_boxes(*views, by_label=False).labels == ["red car"]
    same = [(part, boxes, [label.upper() for label in labels]) for part, boxes, labels in views[:2]]
    assert merged_boxes(*same, (RIGHT, [[52, 103, 148, 197]], ["red car"])).labels == ["RED CAR"]


def test_what_one_answer_tells_apart_stays_apart():
    """Two boxes of one label that overlap much are two, whether in one tile or in both."""
    pair = [[450, 100, 550, 200], [460, 110, 560, 210]]
    in_right = [[box[0] - 400, box[1], box[2] - 400, box[3]] for box in pair]
    assert merged_boxes((WHOLE, [], []), (LEFT, pair, ["dog"] * 2), (RIGHT, [], [])).bboxes == pair
    both = merged_boxes((WHOLE, [], []), (LEFT, pair, ["dog"] * 2), (RIGHT, in_right, ["dog"] * 2))
    assert both.bboxes == pair


def test_a_small_object_in_front_of_a_large_one_stays():
    """Intersection over the smaller area is for cut boxes only."""
    large, small = [100, 100, 900, 700], [450, 300, 480, 340]
    merged = merged_boxes(
        (WHOLE, [large], ["dog"]), (LEFT, [[100, 100, 599, 700], small], ["dog"] * 2), (RIGHT, [], [])
    )
    assert merged.bboxes == [large, small]


def test_a_cut_object_that_no_view_shows_whole_is_put_together():
    """Both tiles cut it, and the whole image shows nothing. Its score is the lower one."""
    views = [
        View(WHOLE, Boxes([], [], []), whole=True),
        View(LEFT, Boxes([[300, 100, 599, 200]], ["train"], [0.4])),
        View(RIGHT, Boxes([[0, 98, 300, 202]], ["train"], [0.7])),
    ]
    merged = merge(views, by_label=True)
    assert (merged.bboxes, merged.scores) == ([[300, 98, 700, 202]], [0.4])


def test_a_cut_box_that_another_tile_refutes_is_dropped():
    """The right tile shows all of it and finds nothing. If it shows less than half, the box stays."""
    seen, unseen = [540, 100, 599, 200], [100, 100, 599, 200]
    assert merged_boxes((WHOLE, [], []), (LEFT, [seen], ["dog"]), (RIGHT, [], [])).bboxes == []
    assert merged_boxes((WHOLE, [], []), (LEFT, [unseen], ["dog"]), (RIGHT, [], [])).bboxes == [unseen]
    uncut = [450, 100, 550, 200]
    assert merged_boxes((WHOLE, [], []), (LEFT, [uncut], ["dog"]), (RIGHT, [], [])).bboxes == [uncut]


def test_scores_stay_with_their_boxes():
    """The score is that of the box that is kept. Without scores in an answer there are none."""
    views = [
        View(WHOLE, Boxes([[0, 0, 90, 90], [402, 402, 470, 471]], ["dog", "dog"], [0.1, 0.2]), whole=True),
        View(LEFT, Boxes([[400, 400, 470, 470]], ["dog"], [0.9])),
    ]
    merged = merge(views, by_label=True)
    assert list(zip(merged.bboxes, merged.scores, strict=True)) == [([0, 0, 90, 90], 0.1), ([400, 400, 470, 470], 0.9)]
    assert merge([*views, View(RIGHT, Boxes([[500, 9, 550, 50]], ["cat"]))], by_label=True).scores is None
    assert merge([View(WHOLE, Boxes([], [], None), whole=True)], by_label=True).scores is None


def test_confidences_stay_with_boxes_and_lines():
    """A line that was put together is as certain as its least certain piece."""
    boxes = [View(WHOLE, Boxes([], [], None), whole=True), View(LEFT, Boxes([[1, 2, 30, 40]], ["dog"], [0.5], [0.9]))]
    assert merge(boxes, by_label=True).confidences == [0.9]
    lines = [
        View(WHOLE, Quads([], []), whole=True),
        View(LEFT, Quads([quad(100, 50, 599, 70)], ["the quick brown f"], [0.7])),
        View(
            RIGHT, Quads([quad(0, 51, 300, 71), quad(100, 300, 190, 320)], ["brown fox jumps", "lazy dog"], [0.6, 0.8])
        ),
    ]
    assert merge(lines, by_label=False).confidences == [0.6, 0.8]


def test_polygons_are_merged_like_boxes():
    """One outline of an object seen twice; an object that is cut everywhere keeps an outline for each piece."""

    def square(x1, y1, x2, y2):
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]

    def view(part, outlines, whole=False):
        return View(part, BoxesAndPolygons([], [], outlines, ["dog"] * len(outlines), None), whole)

    twice = [view(WHOLE, [], True), view(LEFT, [square(450, 9, 550, 99)]), view(RIGHT, [square(50, 9, 150, 99)])]
    assert merge(twice, by_label=True).polygons == [square(450, 9, 550, 99)]
    cut = [view(WHOLE, [], True), view(LEFT, [square(300, 9, 599, 99)]), view(RIGHT, [square(0, 9, 300, 99)])]
    assert merge(cut, by_label=True).polygons == [[*square(400, 9, 700, 99), *square(300, 9, 599, 99)]]


def test_only_answers_of_one_form_can_be_merged():
    """Anything else is not Florence-2's answer to these tasks."""
    for answers in ([TextAnswer("a"), TextAnswer("b")], [Boxes([], []), Quads([], [])]):
        with pytest.raises(InternalError, match="cannot be merged"):
            merge([View(WHOLE, answer) for answer in answers], by_label=True)
