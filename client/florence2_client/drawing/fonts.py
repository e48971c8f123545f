"""Draw text in any script: each run of a text in the first font that has its glyphs.

The default is DejaVu if the system has it, for its many scripts, and otherwise the Latin font that Pillow includes.
Other characters are looked up in the fonts of the system; a warning names scripts that no font has.
"""

from __future__ import annotations

import functools
import itertools
import os
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont, load_default, truetype

FOLDERS = tuple(
    Path(folder).expanduser()
    for folder in (
        "~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts",
        "~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts",
    )
)  # fmt: skip
UNWANTED = ("bold", "italic", "oblique", "mono", "serif", "light", "thin", "condensed", "black", "medium")
NONCHARACTER = "\U0010ffff"  # fonts draw it like any character they lack
PROBE_SIZE = 24
BITMAP_SIZE = 109  # the only size of the usual color emoji font
INVISIBLE = ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")  # Unicode categories of controls and spaces
JOINERS = "\u200c\u200d"
SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


class MissingGlyphs(UserWarning):
    """A label contains characters that no font on the system has."""


@dataclass(frozen=True)
class _Run:
    """A run of text in one font; `scale` is for fonts that have only one size."""

    text: str
    font: FreeTypeFont
    scale: float = 1.0

    @property
    def length(self) -> float:
        return self.font.getlength(self.text) * self.scale


@dataclass(frozen=True)
class TextFont:
    """Fonts of one size in pixels, for text in any script."""

    size: int

    @property
    def line_height(self) -> int:
        """Return the distance between lines in pixels."""
        return sum(_font(None, self.size).getmetrics())

    def getlength(self, text: str) -> float:
        """Return the width of a text in pixels."""
        return sum(run.length for run in self._runs(text))

    def draw(
        self, canvas: Image.Image, origin: tuple[float, float], text: str, fill: tuple[int, int, int] | str
    ) -> None:
        """Draw one line with its top left corner at the origin and all fonts on one baseline."""
        brush = ImageDraw.Draw(canvas)
        x, y = origin
        base = y + _font(None, self.size).getmetrics()[0]
        for run in self._runs(text):
            if run.scale == 1.0:
                brush.text((x, base), run.text, fill=fill, font=run.font, anchor="ls")
            else:
                _paste_scaled(canvas, run, x, base)
            x += run.length

    def _runs(self, text: str) -> list[_Run]:
        if text.isascii():
            return [_Run(text, _font(None, self.size))]
        runs = []
        for face, pairs in itertools.groupby(zip(_faces(text), text, strict=True), key=lambda pair: pair[0]):
            part = "".join(character for _, character in pairs)
            try:
                runs.append(_Run(part, _font(face, self.size)))
            except OSError:
                runs.append(_Run(part, _font(face, BITMAP_SIZE), self.size / BITMAP_SIZE))
        return runs


@functools.lru_cache(maxsize=64)
def _font(face: Path | None, size: int) -> FreeTypeFont:
    """Return the font of a face, or the default font. Raise OSError for a bitmap font of another size."""
    if face:
        return truetype(str(face), size)
    try:
        return truetype("DejaVuSans.ttf", size)
    except OSError:
        return cast(FreeTypeFont, load_default(size))


def _faces(text: str) -> list[Path | None]:
    """Return a face for each character.

    A space takes the face of its neighbors if they agree, so that right-to-left words keep their order, and otherwise
    the default, whose spaces are narrower than those of emoji fonts.
    """
    faces: list[Path | None] = []
    for character in text:
        # An accent, vowel sign, joiner, selector or skin tone belongs to the character before it.
        joins = character in JOINERS or character in SKIN_TONES or unicodedata.category(character).startswith("M")
        faces.append(faces[-1] if faces and joins else _face_of(character))
    for place in range(1, len(text) - 1):
        if text[place] == " " and faces[place - 1] == faces[place + 1]:
            faces[place] = faces[place - 1]
    return faces


_warned: set[str] = set()  # scripts


@functools.lru_cache(maxsize=4096)
def _face_of(character: str) -> Path | None:
    """Return the face that has a character; None for the default, which draws a box for what no font has.

    Warn once per script, which is the first word of its characters' names.
    """
    if unicodedata.category(character) in INVISIBLE or _has(None, character):
        return None
    face = next((face for face in _system_fonts() if _has(face, character)), None)
    script = unicodedata.name(character, "private").split()[0]
    if face is None and script not in _warned:
        _warned.add(script)
        warnings.warn(
            f"no font here has {character} (U+{ord(character):04X}, {script}); a box takes its place. On Debian, "
            "fonts-noto-core, fonts-noto-cjk and fonts-noto-color-emoji have nearly all characters",
            MissingGlyphs,
            stacklevel=2,
        )
    return face


def _has(face: Path | None, character: str) -> bool:
    try:
        font = _probe(face)
        mine, missing = font.getmask(character), font.getmask(NONCHARACTER)
    except (OSError, ValueError, UnicodeEncodeError):
        return False
    return mine.size != missing.size or bytes(mine) != bytes(missing)


@functools.lru_cache(maxsize=512)
def _probe(face: Path | None) -> FreeTypeFont:
    try:
        return _font(face, PROBE_SIZE)
    except OSError:
        return _font(face, BITMAP_SIZE)


@functools.lru_cache(maxsize=1)
def _system_fonts() -> list[Path]:
    """Return every font file, plain upright ones first."""
    files = [
        Path(folder, name)
        for top in FOLDERS
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf", ".otc"))
    ]
    return sorted(files, key=lambda file: (sum(word in file.name.lower() for word in UNWANTED), file.name))


def _paste_scaled(canvas: Image.Image, run: _Run, x: float, base: float) -> None:
    """Draw a run of a color font in its only size, and scale it to the size of the text around it."""
    left, top, right, bottom = run.font.getbbox(run.text, anchor="ls")
    width, height = round(right - left), round(bottom - top)
    if width < 1 or height < 1:
        return
    drawn = Image.new("RGBA", (width, height))
    brush = ImageDraw.Draw(drawn)
    brush.text((-left, -top), run.text, font=run.font, anchor="ls", embedded_color=True)
    size = max(1, round(width * run.scale)), max(1, round(height * run.scale))
    small = drawn.resize(size, Image.Resampling.LANCZOS)
    canvas.paste(small, (round(x + left * run.scale), round(base + top * run.scale)), small)
