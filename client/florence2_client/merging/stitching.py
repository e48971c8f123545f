"""Stitch the texts of two pieces of a line, which both have the letters where the pieces overlap."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

MISPLACED = 1.2  # letters that a run must be longer for each letter's width that it is out of place
SLACK = 0.25  # of the overlap: how far letters may be from where equal widths would put them
GAP = 0.4  # of a letter's width from which two pieces that do not overlap are two words


@dataclass(frozen=True)
class Stretch:
    """A text between two positions along its line, and whether a tile's border cuts its ends."""

    text: str
    start: float
    end: float
    cut_start: bool = False
    cut_end: bool = False

    @property
    def letter(self) -> float:
        """Return the mean width of a letter."""
        return max(self.end - self.start, 1e-6) / max(len(self.text), 1)

    def index(self, position: float) -> float:
        """Return the place of a position among the letters, as if all were equally wide."""
        return (position - self.start) / self.letter


def stitch(left: Stretch, right: Stretch) -> Stretch:
    """Return the text from the start of `left` to the end of `right`.

    Letters at a cut end may be misread, so the texts are joined behind their longest common run in the overlap, and
    what `left` has after it and `right` before it is dropped. Of equally long runs the best placed one counts.
    """
    if right.start >= left.end:
        space = " " if right.start - left.end > GAP * (left.letter + right.letter) / 2 else ""
        return _joined(left, right, left.text + space + right.text)
    run = _common_run(left, right)
    if run is None:
        middle = (right.start + min(left.end, right.end)) / 2
        keep, skip = round(left.index(middle)), round(right.index(middle))
        return _joined(left, right, left.text[: max(0, keep)] + right.text[max(0, skip) :])
    end_in_left, end_in_right = run
    rest = right.text[end_in_right:]
    if right.end < left.end and not rest:  # `right` is shorter, but its end is not cut
        return left
    return _joined(left, right, left.text[:end_in_left] + rest)


def _joined(left: Stretch, right: Stretch, text: str) -> Stretch:
    return Stretch(text, left.start, max(left.end, right.end), left.cut_start, right.cut_end)


def _common_run(left: Stretch, right: Stretch) -> tuple[int, int] | None:
    """Return where the best common run of letters ends in each text, or None if they share nothing."""
    slack = 2 + SLACK * right.index(left.end)
    first = max(0, math.floor(left.index(right.start) - slack))
    beyond = min(len(right.text), math.ceil(right.index(left.end) + slack))
    width = (left.letter + right.letter) / 2
    best, found = 0.0, None
    for i in range(first, len(left.text)):
        for j in range(beyond):
            letters = zip(left.text[i:], right.text[j:beyond], strict=False)
            length = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], letters))
            apart = abs(left.start + i * left.letter - right.start - j * right.letter) / width
            score = length - MISPLACED * apart
            if score > best and (length > 1 or apart < 1):
                best, found = score, (i + length, j + length)
    return found
