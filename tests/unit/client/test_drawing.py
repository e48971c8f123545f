"""Drawings are judged by their pixels: what must change, what must stay, and what must be inside the image."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from florence2.answers import Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.errors import InvalidImage
from florence2_client import draw
from florence2_client.drawing import PALETTE, label_colors, labels
from florence2_client.drawing.fonts import TextFont
from florence2_client.drawing.labels import Label, contrasting, draw_labels, wrapped

SIZE = (640, 480)
BOX = [100.0, 100.0, 300.0, 200.0]


def canvas(color="gray", size=SIZE):
    return Image.new("RGB", size, color)


def changed(drawn, plain=None):
    """[H, W] bool: where the drawing differs from the plain image."""
    return (np.asarray(drawn) != np.asarray(plain or canvas(size=drawn.size))).any(axis=2)


def test_box_is_outlined_and_its_inside_stays():
    """The line lies on the box's edges; what the box is about stays visible."""
    difference = changed(draw(canvas(), Boxes([BOX], [""])))
    assert difference[100, 100:300].all()
    assert difference[100:200, 300].all()
    assert not difference[115:185, 115:285].any()


@pytest.mark.parametrize("background", ["black", "white", *PALETTE])
def test_line_and_label_show_on_any_background(background):
    """On every background, also one of the mark's own color, the edge and the label differ clearly from it."""
    drawn = draw(canvas(background), Boxes([BOX], ["dog"], [0.5]))
    contrast = np.abs(np.asarray(drawn, int) - np.asarray(canvas(background), int)).sum(axis=2)
    assert (contrast[95:106, 150:250].max(axis=0) > 150).all()
    assert contrast[75:99, 95:180].max() > 200


@pytest.mark.parametrize("color", PALETTE)
def test_label_text_is_readable_on_its_chip(color):
    """Text and chip have WCAG's contrast of 4.5 : 1 for every color."""

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(color), luminance(contrasting(color))))
    assert (light + 0.05) / (dark + 0.05) > 4.5


def test_polygon_is_tinted_with_holes_left_open():
    """The area inside is tinted, outside it stays; every polygon of an instance is drawn."""
    answer = Polygons([[[100, 100, 200, 100, 200, 200, 100, 200], [300, 300, 400, 300, 400, 400]]], [""])
    drawn = draw(canvas(), answer)
    difference = changed(drawn)
    assert difference[150, 150]
    assert difference[330, 380]
    assert not difference[250, 250]


def test_quad_is_drawn_by_its_corners():
    """A slanted quad has slanted lines: its corners are marked, those of its bounding box are not."""
    difference = changed(draw(canvas(), Quads([[200, 200, 300, 250, 250, 350, 150, 300]], [""])))
    assert difference[200, 200]
    assert difference[250, 300]
    assert not difference[200, 300]
    assert not difference[350, 150]


def test_boxes_and_polygons_are_both_drawn():
    """Open-vocabulary detection may answer with both kinds at once."""
    answer = BoxesAndPolygons([BOX], ["a"], [[[400.0, 300.0, 500.0, 300.0, 500.0, 400.0]]], ["b"])
    difference = changed(draw(canvas(), answer))
    assert difference[100, 200]
    assert difference[330, 480]


def test_caption_becomes_a_strip_below():
    """The image stays as it is; the text stands below it, and longer text takes more room."""
    short = draw(canvas(), TextAnswer("a dog"))
    long = draw(canvas(), TextAnswer("a dog on a very long walk " * 20))
    assert not changed(short.crop((0, 0, *SIZE))).any()
    assert SIZE[1] < short.height < long.height
    assert np.asarray(short.crop((0, SIZE[1], *short.size))).min() < 100


def test_region_in_a_text_answer_is_drawn_with_its_text():
    """Answers of region tasks keep the location tokens: they become a box, the words its label."""
    difference = changed(draw(canvas(size=(1000, 1000)), TextAnswer("car<loc_100><loc_200><loc_499><loc_999>")))
    assert difference.shape == (1000, 1000)
    assert difference[200, 100:499].all()
    assert not difference[300:900, 150:450].any()


def test_objects_in_the_answer_to_a_custom_prompt_are_drawn_with_their_labels():
    """Draw them like those of a task; what the labels do not say stands below."""
    text = "cat<loc_100><loc_200><loc_499><loc_999>dog<loc_600><loc_0><loc_1000><loc_400>"
    boxes = Boxes([[100.5, 200.5, 499.5, 999.5], [600.5, 0.5, 999.5, 400.5]], ["cat", "dog"])
    size = (1000, 1000)
    assert draw(canvas(size=size), TextAnswer(text)).tobytes() == draw(canvas(size=size), boxes).tobytes()
    assert draw(canvas(size=size), TextAnswer(f"{text} in a garden")).height > 1000


def test_long_text_of_a_region_goes_below():
    """A description too long for a label keeps its box and stands below the image."""
    words = "a red car that is parked in front of a very old building with many windows"
    drawn = draw(canvas(), TextAnswer(words + "<loc_100><loc_200><loc_499><loc_899>"))
    assert drawn.height > SIZE[1]
    assert changed(drawn.crop((0, 0, *SIZE)))[96, 64:319].all()
    assert not changed(drawn.crop((0, 0, *SIZE)))[:90].any()  # no label


@pytest.mark.parametrize("text", ["", " ", "\n\n", "<loc_1>", "<loc_1>" * 5, "a" * 3000, "\u200d中文", "\ud800"])
def test_no_text_breaks_the_drawing(text):
    """These are empty, long, or no letters at all."""
    draw(canvas(), TextAnswer(text))


@pytest.mark.parametrize("size", [(1, 1), (8, 5), (64, 48), (3000, 40), (40, 3000), (1920, 1080)])
def test_any_size_is_drawn_and_small_ones_are_enlarged(size):
    """Images grow by a whole factor until labels can be read, and keep their shape."""
    width, height = size
    answer = Boxes([[0, 0, width, height], [width / 2, height / 2, width, height]], ["whole", "a long label " * 9])
    drawn = draw(canvas(size=size), answer)
    factor = drawn.width // width
    assert drawn.size == (factor * width, factor * height)
    assert max(drawn.size) >= 480
    assert factor == 1 or max(size) < 480


@pytest.mark.parametrize(
    "answer",
    [
        Boxes([], []),
        Boxes([[5, 5, 5, 5]], ["point"]),
        Boxes([[-50, -50, 9000, 9000]], ["outside"], [1.0]),
        Polygons([[]], ["none"]),
        Polygons([[[1.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]]], ["dot", "line"]),
        Boxes([BOX], [" \n "]),
        Boxes([BOX], ["two\nlines"]),
        Boxes([BOX], ["\ud800"]),
    ],
)
def test_degenerate_answers_are_drawn(answer):
    """Nothing that a parser can make breaks the drawing."""
    assert draw(canvas(), answer).size == SIZE


def placed(monkeypatch, marks, size=SIZE):
    """Where the chips of labeled marks go."""
    places = []
    best_place = labels._best_place

    def remember(*arguments):
        places.append(best_place(*arguments))
        return places[-1]

    monkeypatch.setattr(labels, "_best_place", remember)
    draw_labels(canvas(size=size), [Label(text, (0, 0, 0), bounds) for text, bounds in marks])
    return places


def test_labels_stay_inside_the_image(monkeypatch):
    """Marks at every edge and corner keep their whole label in view."""
    spots = itertools.product((0, 300, 600), (0, 200, 440))
    for x, y in spots:
        [(x1, y1, x2, y2)] = placed(monkeypatch, [("some label 0.99", (x, y, x + 40, y + 40))])
        assert x1 >= 0 and y1 >= 0 and x2 <= SIZE[0] and y2 <= SIZE[1]


def test_labels_avoid_each_other(monkeypatch):
    """Ten labels at the very same box all find places of their own."""
    places = placed(monkeypatch, [(f"thing {index}", tuple(BOX)) for index in range(10)])
    for a, b in itertools.combinations(places, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_wrapped_lines_fit_and_lose_nothing():
    """Lines are no wider than asked, long words are cut, and all words are there."""
    font = TextFont(16)
    text = "the quick brown fox " + "x" * 100 + " end"
    lines = wrapped(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_label_has_the_same_color_in_every_image():
    """A label's color does not depend on its neighbors, and equal labels share it."""
    assert label_colors(["dog"])["dog"] == label_colors(["dog", "dog"])["dog"]
    assert label_colors(["dog", "cat"]) == label_colors(["cat", "dog"])


def test_labels_of_one_image_differ_in_color():
    """No two labels share a color until the palette is used up; more labels work too."""
    names = [f"label {index}" for index in range(len(PALETTE))]
    assert len(set(label_colors(names).values())) == len(PALETTE)
    assert len(label_colors([*names, "one more"])) == len(PALETTE) + 1


def test_file_is_drawn_upright():
    """An image with EXIF orientation is turned as the answer's coordinates are."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = io.BytesIO()
    canvas().save(buffer, "JPEG", exif=exif)
    assert draw(buffer.getvalue(), Boxes([BOX], ["dog"])).size == (480, 640)


def test_input_image_is_not_changed():
    """Drawing makes a new image."""
    image = canvas()
    draw(image, Boxes([BOX], ["dog"]))
    assert not changed(image).any()


def test_bytes_that_are_no_image_are_refused():
    """Drawing on something else fails with our own error."""
    with pytest.raises(InvalidImage):
        draw(b"no image", Boxes([], []))
