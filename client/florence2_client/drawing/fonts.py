"""Letters for any script: each stretch of a text in the first font of the system that has its glyphs.

`labels` and `drawing` measure and draw with it. DejaVu where the system has it, for its many scripts, else the Latin
font that Pillow brings; what they lack is looked for in the system's folders. What no font has is warned of.
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
NOBODYS = "\U0010ffff"  # a noncharacter: fonts draw it as they draw what they lack
PROBE_SIZE = 24
BITMAP_SIZE = 109  # the one size of the usual colour emoji font
INVISIBLE = ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")  # Unicode's categories of controls and spaces
JOINERS = "\u200c\u200d"


class MissingGlyphs(UserWarning):
    """A label holds characters that no font on the system has."""


@dataclass(frozen=True)
class _Run:
    """A stretch of text in one font; `scale` is for fonts of one size only."""

    text: str
    font: FreeTypeFont
    scale: float = 1.0

    @property
    def length(self) -> float:
        return self.font.getlength(self.text) * self.scale


@dataclass(frozen=True)
class Lettering:
    """Text of one size in pixels."""

    size: int

    @property
    def line_height(self) -> int:
        return sum(_font(None, self.size).getmetrics())

    def getlength(self, text: str) -> float:
        """Width in pixels."""
        return sum(run.length for run in self._runs(text))

    def draw(
        self, canvas: Image.Image, origin: tuple[float, float], text: str, fill: tuple[int, int, int] | str
    ) -> None:
        """One line, its top left corner at the origin, all fonts on one base line."""
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
        stretches = itertools.groupby(zip(_faces(text), text, strict=True), key=lambda pair: pair[0])
        return [self._run(face, "".join(character for _, character in pairs)) for face, pairs in stretches]

    def _run(self, face: Path | None, text: str) -> _Run:
        try:
            return _Run(text, _font(face, self.size))
        except OSError:
            return _Run(text, _font(face, BITMAP_SIZE), self.size / BITMAP_SIZE)


@functools.lru_cache(maxsize=64)
def _font(face: Path | None, size: int) -> FreeTypeFont:
    """The usual font without a face. Raises OSError for a bitmap font of another size."""
    if face:
        return truetype(str(face), size)
    try:
        return truetype("DejaVuSans.ttf", size)
    except OSError:
        return cast(FreeTypeFont, load_default(size))


def _faces(text: str) -> list[Path | None]:
    """A face for each character. A space takes that of its neighbours if they agree, so that right-to-left words keep
    their order, and else the usual one, whose spaces are narrower than those between emoji.
    """
    faces: list[Path | None] = []
    for character in text:
        faces.append(faces[-1] if faces and _joins(character) else _face_of(character))
    for place in range(1, len(text) - 1):
        if text[place] == " " and faces[place - 1] == faces[place + 1]:
            faces[place] = faces[place - 1]
    return faces


def _joins(character: str) -> bool:
    """Belongs to the character before it: accents, vowel signs, joiners, variation selectors, skin tones."""
    tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return tone or character in JOINERS or unicodedata.category(character).startswith("M")


@functools.lru_cache(maxsize=4096)
def _face_of(character: str) -> Path | None:
    """The font that has a character; None for the usual one, which also draws a box for what nobody has."""
    if unicodedata.category(character) in INVISIBLE or _has(None, character):
        return None
    face = next((face for face in _system_fonts() if _has(face, character)), None)
    if face is None:
        _warn_of(character)
    return face


_warned: set[str] = set()


def _warn_of(character: str) -> None:
    """Once for a script, which is the first word of its characters' names."""
    script = unicodedata.name(character, "private").split()[0]
    if script in _warned:
        return
    _warned.add(script)
    warnings.warn(
        f"no font here has {character} (U+{ord(character):04X}, {script}); there is a box in its place. On Debian, "
        "fonts-noto-core, fonts-noto-cjk and fonts-noto-color-emoji have nearly all characters",
        MissingGlyphs,
        stacklevel=2,
    )


def _has(face: Path | None, character: str) -> bool:
    try:
        font = _probe(face)
        mine, nobodys = font.getmask(character), font.getmask(NOBODYS)
    except (OSError, ValueError, UnicodeEncodeError):
        return False
    return mine.size != nobodys.size or bytes(mine) != bytes(nobodys)


@functools.lru_cache(maxsize=512)
def _probe(face: Path | None) -> FreeTypeFont:
    try:
        return _font(face, PROBE_SIZE)
    except OSError:
        return _font(face, BITMAP_SIZE)


@functools.lru_cache(maxsize=1)
def _system_fonts() -> list[Path]:
    """Every font file, plain upright ones first."""
    files = [
        Path(folder, name)
        for top in FOLDERS
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf", ".otc"))
    ]
    return sorted(files, key=lambda file: (sum(word in file.name.lower() for word in UNWANTED), file.name))


def _paste_scaled(canvas: Image.Image, run: _Run, x: float, base: float) -> None:
    """A colour font of one size, drawn in that size and scaled to its neighbours'."""
    left, top, right, bottom = run.font.getbbox(run.text, anchor="ls")
    width, height = round(right - left), round(bottom - top)
    if width < 1 or height < 1:
        return
    picture = Image.new("RGBA", (width, height))
    brush = ImageDraw.Draw(picture)
    brush.text((-left, -top), run.text, font=run.font, anchor="ls", embedded_color=True)
    size = max(1, round(width * run.scale)), max(1, round(height * run.scale))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    canvas.paste(small, (round(x + left * run.scale), round(base + top * run.scale)), small)
