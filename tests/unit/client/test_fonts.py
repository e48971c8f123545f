"""Letters of any script are found in the system's fonts, and what none has is told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from florence2.answers import Boxes
from florence2_client import draw
from florence2_client.drawing import fonts
from florence2_client.drawing.fonts import MissingGlyphs, TextFont

WIDE, TALL = "\ue001", "\ue002"  # of Unicode's private use area: no font of a system has them


@pytest.fixture
def forget():
    """What is remembered of the system's fonts is for one system."""
    caches = (fonts._font, fonts._face_of, fonts._probe, fonts._system_fonts)
    for cache in caches:
        cache.cache_clear()
    fonts._warned.clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def own_fonts(tmp_path, monkeypatch, forget):
    """A system whose folder has a font with one glyph, a wide black block, and one with a tall one."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder
    pen_of = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen
    for name, character, width, height in (("Wide", WIDE, 900, 300), ("Tall", TALL, 300, 900)):
        glyphs = {}
        for glyph, size in ((".notdef", (500, 500)), ("block", (width, height))):
            pen = pen_of(None)
            corners = [(0, 0), (0, size[1]), (size[0], size[1]), (size[0], 0)]
            pen.moveTo(corners[0])
            for corner in corners[1:]:
                pen.lineTo(corner)
            pen.closePath()
            glyphs[glyph] = pen.glyph()
        font = builder(1000, isTTF=True)
        font.setupGlyphOrder(list(glyphs))
        font.setupCharacterMap({ord(character): "block"})
        font.setupGlyf(glyphs)
        font.setupHorizontalMetrics({".notdef": (500, 0), "block": (width, 0)})
        font.setupHorizontalHeader(ascent=900, descent=-100)
        font.setupNameTable({"familyName": name, "styleName": "Regular"})
        font.setupOS2()
        font.setupPost()
        (tmp_path / "deep").mkdir(exist_ok=True)
        font.save(tmp_path / "deep" / f"{name}.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "FOLDERS", (tmp_path,))


def ink(text):
    """[rows, columns] bool: what a text of 40 pixels leaves on white."""
    canvas = Image.new("RGB", (400, 80), "white")
    TextFont(40).draw(canvas, (10, 10), text, "black")
    return np.asarray(canvas).min(axis=2) < 128


def test_each_character_is_drawn_in_a_font_that_has_it(own_fonts):
    """Two fonts of the system in one text next to the usual one; broken files are passed over."""
    assert ink(WIDE).sum() == pytest.approx(36 * 12, rel=0.1)
    assert ink(TALL).sum() == pytest.approx(12 * 36, rel=0.1)
    assert ink(f"i{WIDE}i{TALL}").sum() == pytest.approx(2 * ink("i").sum() + 2 * 36 * 12, rel=0.1)


def test_width_is_that_of_all_fonts(own_fonts):
    """Labels are measured as they are drawn."""
    font = TextFont(40)
    assert font.getlength(WIDE + TALL) == pytest.approx(36 + 12, abs=1)
    columns = np.flatnonzero(ink(f"l{WIDE}").any(axis=0))
    assert columns[-1] + 1 - 10 == pytest.approx(font.getlength(f"l{WIDE}"), abs=2)


def test_a_script_without_a_font_is_warned_of_once(own_fonts):
    """The warning names the character and the remedy."""
    with pytest.warns(MissingGlyphs, match=r"U\+E003.*fonts-noto-cjk"):
        ink("\ue003")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ink("\ue003\ue004")


def test_drawings_use_the_fonts_of_foreign_scripts(own_fonts):
    """A label in a foreign script leaves more than a box on the chip."""
    canvas = Image.new("RGB", (640, 480), "gray")
    labeled, boxed = (draw(canvas, Boxes([[100, 100, 300, 200]], [text])) for text in (WIDE * 3, "\ue004" * 3))
    assert np.asarray(labeled).tobytes() != np.asarray(boxed).tobytes()


@pytest.mark.parametrize("text", ["", " ", "\u200d", "\u0301", "e\u0301", "\ud800", "a\x00b", "\U0010ffff", "שלום"])
def test_odd_characters_are_drawn_somehow(text):
    """Controls, lone marks and halves of pairs break nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingGlyphs)
        font = TextFont(20)
        font.draw(Image.new("RGB", (100, 40)), (0, 0), text, "white")
        assert font.getlength(text) >= 0


def test_accents_and_vowel_signs_stay_with_their_letter(own_fonts):
    """A mark is drawn in the font of the letter before it, wherever it is found itself."""
    faces = fonts._faces(f"{WIDE}\u0301 {WIDE}e")
    assert [face and face.stem for face in faces] == ["Wide", "Wide", "Wide", "Wide", None]


def test_without_dejavu_pillows_own_font_is_used(monkeypatch, forget):
    """A system without any font still gets Latin labels."""
    found = fonts.truetype

    def missing(font, *rest):
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return found(font, *rest)

    monkeypatch.setattr(fonts, "truetype", missing)
    monkeypatch.setattr(fonts, "FOLDERS", ())
    assert ink("dog").any()


def test_plain_fonts_come_first(tmp_path, monkeypatch, forget):
    """Take the upright font of usual weight from several that have a character."""
    for name in ("A-Bold.ttf", "B-LightItalic.otf", "Z-Regular.ttc", "C-Mono.ttf", "readme.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(fonts, "FOLDERS", (tmp_path,))
    assert fonts._system_fonts()[0].name == "Z-Regular.ttc"
    assert len(fonts._system_fonts()) == 4
