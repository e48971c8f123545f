"""Merging the answers to tiles: a perfect detector or reader of clipped parts must give back the truth."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.answers import Boxes, BoxesAndPolygons, Quads, TextAnswer
from florence2.errors import InternalError
from florence2.parsing import parse, pieces_from_text
from florence2.tasks import Grammar
from florence2_client.merging import View, generated_text, merge
from florence2_client.merging.stitching import Stretch, stitch
from florence2_client.tiling import tile_boxes
from tests import reference  # noqa: F401  the profile of hypothesis

SIZE = (1000, 800)
WHOLE = (0, 0, *SIZE)


def clipped(box, part):
    """What of a box a view shows, in the view's own pixels."""
    x1, y1, x2, y2 = max(box[0], part[0]), max(box[1], part[1]), min(box[2], part[2]), min(box[3], part[3])
    return [x1 - part[0], y1 - part[1], x2 - part[0], y2 - part[1]] if x1 < x2 and y1 < y2 else None


def quad(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


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


LEFT, RIGHT = (0, 0, 600, 800), (400, 0, 1000, 800)


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


# ---- lines of text


def read(truth, part, letter):
    """A perfect reader's answer about a part: of each line the letters of which at least half is there.

    `truth` holds (text, x, y) with letters that are `letter` pixels wide and twice as high.
    """
    quads, labels = [], []
    for text, x, y in truth:
        seen = clipped((x, y, x + letter * len(text), y + 2 * letter), part)
        if seen is None or seen[3] - seen[1] < letter:
            continue
        first = max(0, round((part[0] - x) / letter))
        last = min(len(text), round((part[2] - x) / letter))
        words = text[first:last]
        if not words.strip():
            continue
        start = x + letter * (first + len(words) - len(words.lstrip()))
        end = x + letter * (last - len(words) + len(words.rstrip()))
        box = clipped((start, y, end, y + 2 * letter), part)
        quads.append(quad(*box))
        labels.append(words.strip())
    return Quads(quads, labels)


def lines_of(truth, tiles, letter=8, whole=False, size=SIZE):
    views = [View((0, 0, *size), read(truth if whole else [], (0, 0, *size), letter), whole=True)]
    views += [View(part, read(truth, part, letter)) for part in tile_boxes(size, tiles)]
    return merge(views, by_label=False).labels


WORDS = st.text(string.ascii_letters + string.digits + "...  ", min_size=3, max_size=110).map(
    lambda text: " ".join(text.split())
)


def is_readable(text):
    """The letters of a long run of one letter cannot be counted where no tile shows all of it."""
    return bool(text) and all(letter * 8 not in text for letter in set(text))


@given(
    st.lists(st.tuples(WORDS.filter(is_readable), st.integers(0, 100)), min_size=1, max_size=12),
    st.sampled_from([(3, 2), (2, 3), (4, 4), 250, 400]),
    st.booleans(),
)
def test_a_perfect_readers_lines_are_the_truth(lines, tiles, whole):
    """However the tiles cut lines and letters, each line is read once, complete, and in order."""
    truth = [(text, x, 10 + 40 * row) for row, (text, x) in enumerate(lines)]
    assert lines_of(truth, tiles, whole=whole) == [text for text, _, _ in truth]


def test_a_letter_that_a_border_cuts_is_read_by_the_other_tile():
    """Both tiles misread the letter at their border."""
    left, right = Stretch("Invoice numb3", 0, 130), Stretch("|ce number 42", 50, 180)
    assert stitch(left, right).text == "Invoice number 42"


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        (("Total", 0, 50), ("due", 60, 90), "Total due"),  # no overlap: a gap is a space
        (("Tot", 0, 30), ("al", 31, 50), "Total"),
        (("....5", 0, 50), ("...57", 10, 60), "....57"),  # of equal runs, the one in the right place
        (("aaaa", 0, 40), ("aaaa", 20, 60), "aaaaaa"),
        (("abcd", 0, 40), ("wxyz", 20, 60), "abcxyz"),  # they agree on nothing: each has half of the overlap
        (("100 000", 0, 70), ("000 000", 40, 110), "100 000 000"),
    ],
)
def test_stitching(left, right, text):
    """The texts are joined behind their longest common run."""
    joined = stitch(Stretch(*left), Stretch(*right))
    assert (joined.text, joined.start, joined.end) == (text, left[1], right[2])


def merged_lines(*views):
    """Merge views of (part, [(corners, text)]), the first of which is the whole image."""
    views = [
        View(part, Quads([corners for corners, _ in found], [text for _, text in found]), whole=index == 0)
        for index, (part, found) in enumerate(views)
    ]
    merged = merge(views, by_label=False)
    return list(zip(merged.labels, merged.quad_boxes, strict=True))


def test_a_line_that_two_tiles_cut_is_rejoined_with_its_outer_corners():
    """The left tile gives the left corners, the right one the right corners."""
    [(text, corners)] = merged_lines(
        (WHOLE, []),
        (LEFT, [([100, 50, 599, 52, 599, 72, 100, 70], "the quick brown f")]),
        (RIGHT, [([0, 51, 300, 53, 300, 73, 0, 71], "brown fox jumps")]),
    )
    assert text == "the quick brown fox jumps"
    assert corners == [100, 50, 700, 53, 700, 73, 100, 70]


def test_lines_that_run_down_or_up_are_rejoined():
    """The upper edge of the quad says where the text begins."""
    top, bottom = (0, 0, 1000, 500), (0, 300, 1000, 800)
    down = merged_lines(
        (WHOLE, []),
        (top, [([70, 100, 70, 499, 50, 499, 50, 100], "hello wor")]),
        (bottom, [([70, 0, 70, 300, 50, 300, 50, 0], "o world")]),
    )
    assert down == [("hello world", [70, 100, 70, 600, 50, 600, 50, 100])]
    up = merged_lines(
        (WHOLE, []),
        (top, [([50, 499, 50, 100, 70, 100, 70, 499], "o world")]),
        (bottom, [([50, 300, 50, 0, 70, 0, 70, 300], "hello wor")]),
    )
    assert up == [("hello world", [50, 600, 50, 100, 70, 100, 70, 600])]


def test_a_cut_word_gives_way_to_the_whole_one():
    """A model may read half a word as another one; the tile that shows all of it decides."""
    cut = (LEFT, [(quad(560, 50, 599, 70), "CARE")])
    assert merged_lines((WHOLE, []), cut, (RIGHT, [(quad(160, 50, 250, 70), "CASTLE")])) == [
        ("CASTLE", quad(560, 50, 650, 70))
    ]
    assert merged_lines((WHOLE, []), cut, (RIGHT, [])) == []


def test_half_letters_give_way_to_whole_ones():
    """A border along the line leaves the upper half of the letters, which read as something else."""
    top, bottom = (0, 0, 1000, 500), (0, 440, 1000, 800)
    found = merged_lines(
        (WHOLE, []), (top, [(quad(100, 480, 300, 499), "P1PPV")]), (bottom, [(quad(100, 40, 300, 80), "BIRDY")])
    )
    assert found == [("BIRDY", quad(100, 480, 300, 520))]


def test_the_tiles_read_small_text_and_the_whole_image_large_text():
    """What the whole image says of small letters is noise; letters that are large there need no stitching."""
    small = ((LEFT, [(quad(100, 300, 300, 308), "fine print")]), (RIGHT, []))
    assert [text for text, _ in merged_lines((WHOLE, [(quad(95, 298, 310, 309), "tlne qnrt")]), *small)] == [
        "fine print"
    ]
    large = (
        (LEFT, [(quad(100, 100, 599, 200), "HEADL")]),
        (RIGHT, [(quad(0, 100, 500, 200), "ADLI1E")]),
    )
    headline = (WHOLE, [(quad(100, 100, 900, 200), "HEADLINE")])
    assert merged_lines(headline, *large) == [("HEADLINE", quad(100, 100, 900, 200))]
    assert [text for text, _ in merged_lines(headline, *small)] == ["HEADLINE", "fine print"]


def test_lines_are_in_reading_order():
    """Rows of a table are read across, columns of prose one after the other, below what stands above both."""
    table = [
        ("Milk", 50, 100),
        ("1.20", 800, 102),
        ("Bread", 50, 140),
        ("2.10", 800, 138),
        ("Sum", 50, 180),
        ("3.30", 800, 181),
    ]
    assert lines_of(table, (3, 2)) == ["Milk", "1.20", "Bread", "2.10", "Sum", "3.30"]
    prose = [(f"left column, its line {n}", 50, 200 + 30 * n) for n in range(4)]
    prose += [(f"right column, its line {n}", 550, 210 + 30 * n) for n in range(4)]
    title = ("a title that stands above both of the columns", 200, 60)
    for tiles in ((3, 2), (1, 2), 300):
        assert lines_of([*reversed(prose), title], tiles) == [title[0], *(text for text, _, _ in prose)]


def test_a_long_receipt_is_read_from_top_to_bottom():
    """Tiles in one column, many lines."""
    size = (400, 12_000)
    truth = [(f"item {n} costs {n * 7}.00", 20, 20 + 30 * n) for n in range(390)]
    assert lines_of(truth, "auto", size=size) == [text for text, _, _ in truth]


# ---- the merged answer as text


def test_the_text_of_a_merged_answer_reads_as_the_answer():
    """It is what a model would generate, with places in the whole image, to the precision of a bin."""
    answers = {
        Grammar.LABELED_BOXES: Boxes([[10.5, 20.4, 300.5, 400.4]], ["dog"]),
        Grammar.OCR: Quads([[10.5, 20.4, 300.5, 20.4, 300.5, 40.4, 10.5, 40.4]], ["two words"]),
        Grammar.BOXES_OR_POLYGONS: BoxesAndPolygons(
            [[10.5, 20.4, 30.5, 40.4]],
            ["dog"],
            [[[1.5, 2.0, 3.5, 4.4, 5.5, 6.0], [7.5, 8.4, 9.5, 10.0, 11.5, 12.4]]],
            ["cat"],
        ),
    }
    for grammar, answer in answers.items():
        again = parse(grammar, pieces_from_text(generated_text(answer, SIZE)), SIZE, ())
        assert generated_text(again, SIZE) == generated_text(answer, SIZE)
        assert {name: getattr(again, name) for name in answer.to_json() if "labels" in name} == {
            name: values for name, values in answer.to_json().items() if "labels" in name
        }
