"""Merging lines of text: a perfect reader's answers about clipped parts must give the truth."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.answers import Quads
from florence2_client.merging import View, merge
from florence2_client.merging.stitching import Stretch, stitch
from florence2_client.tiling import tile_boxes
from tests import reference  # noqa: F401  the profile of hypothesis
from tests.unit.client.merging.parts import LEFT, RIGHT, SIZE, WHOLE, clipped, quad


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
def test_two_readings_are_joined_at_their_longest_common_run(left, right, text):
    """Without an overlap, a gap is a space; without a common run, each has half of the overlap."""
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
