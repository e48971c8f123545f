"""Parse generated tokens into an answer, with one small function per grammar. The postprocess model calls this.

The grammars are those of transformers' `Florence2PostProcessor`. What its patterns lose or garble is kept here:
fractions of pixels, labels beyond ASCII, line breaks, `<` in a label, bare locations, boxes after polygons. An
unfinished box or line at the end is dropped, and an unclosed polygon is kept; the finish reason shows that the answer
was cut off.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import TypeAlias

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.locations import to_pixel
from florence2.tasks import Grammar

Size: TypeAlias = tuple[int, int]  # width, height


class Kind(enum.Enum):
    """What a piece is: text, or one of the structural tokens."""

    TEXT = "text"
    LOCATION = "location"
    SEPARATOR = "<sep>"
    POLYGON = "<poly>"
    POLYGON_END = "</poly>"


@dataclass(frozen=True)
class Piece:
    """A piece of text, or one structural token with its bin (locations) and log probability (if known)."""

    kind: Kind
    text: str
    location: int = 0
    log_prob: float | None = None


_IGNORED = re.compile(r"<s>|</s>|<pad>")
_STRUCTURE = re.compile(r"(<loc_[0-9]{1,9}>|<sep>|<poly>|</poly>)")
_STRAY_MARKUP = re.compile(r"<ground>|<obj>")


def token_piece(token: str) -> Piece:
    """Return the piece of one token: structural for a location, `<sep>`, `<poly>` or `</poly>`, otherwise text."""
    if not _STRUCTURE.fullmatch(token):
        return Piece(Kind.TEXT, token)
    if token.startswith("<loc_"):
        return Piece(Kind.LOCATION, token, int(token[len("<loc_") : -1]))
    return Piece(Kind(token), token)


def pieces_from_text(text: str) -> list[Piece]:
    """Return the pieces of decoded text, without log probabilities and without `<s>`, `</s>` and `<pad>`."""
    return [token_piece(part) for part in _STRUCTURE.split(_IGNORED.sub("", text)) if part]


def without_half_character(text: str) -> str:
    """Return an incomplete answer without replacement characters at its end, whose other tokens may still come."""
    return text.rstrip("\ufffd")


def without_open_end(grammar: Grammar, pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Return the pieces of an incomplete answer without unfinished parts that the parser would accept.

    These are half a character and an unclosed polygon. The parser itself drops unfinished boxes, quads and labels.
    """
    if not pieces:
        return pieces
    last = pieces[-1]
    if last.kind is Kind.TEXT:
        return [*pieces[:-1], replace(last, text=without_half_character(last.text))]
    if grammar is Grammar.POLYGONS or (grammar is Grammar.BOXES_OR_POLYGONS and _in_polygon(pieces)):
        return pieces[: 1 + max((i for i, piece in enumerate(pieces) if piece.kind is not Kind.LOCATION), default=-1)]
    return pieces


def _in_polygon(pieces: Sequence[Piece]) -> bool:
    """Return whether the last mark of the last run opens a polygon."""
    run = list(takewhile(lambda piece: piece.kind is not Kind.TEXT, reversed(pieces)))
    marks = [piece.kind for piece in run if piece.kind in (Kind.POLYGON, Kind.POLYGON_END)]
    return marks[:1] == [Kind.POLYGON]


def parse(grammar: Grammar, pieces: Sequence[Piece], size: Size, banned_phrases: Collection[str]) -> Answer:
    """Return the answer in pixels of an image of `size`. Never fail: leave out what fits no structure.

    `banned_phrases` are dropped from phrase grounding. Boxes have scores if the log probabilities are known.
    """
    match grammar:
        case Grammar.TEXT:
            return TextAnswer("".join(piece.text for piece in pieces).strip())
        case Grammar.OCR:
            return _quads(pieces, size)
        case Grammar.LABELED_BOXES:
            return _boxes(list(_labeled_corners(pieces)), size)
        case Grammar.BARE_BOXES:
            return _boxes([("", corners) for _, corners in _labeled_corners(pieces)], size)
        case Grammar.GROUNDING:
            found = _labeled_corners(pieces)
            return _boxes([(label, corners) for label, corners in found if label not in banned_phrases], size)
        case Grammar.POLYGONS:
            return _polygons(pieces, size)
        case Grammar.BOXES_OR_POLYGONS:
            return _boxes_and_polygons(pieces, size)


def _boxes(found: list[tuple[str, list[Piece]]], size: Size) -> Boxes:
    corners = [four for _, four in found]
    return Boxes([_pixels(four, size) for four in corners], [label for label, _ in found], _scores(corners))


def _quads(pieces: Sequence[Piece], size: Size) -> Quads:
    """Return each line of text with its first eight locations; corners without a line are dropped."""
    runs = [(text.strip(), next(_location_stretches(run), [])) for text, run in _phrases(pieces) if text]
    found = [(line, stretch[:8]) for line, stretch in runs if len(stretch) >= 8]
    return Quads([_pixels(corners, size) for _, corners in found], [line for line, _ in found])


def _polygons(pieces: Sequence[Piece], size: Size) -> Polygons:
    """Return the instances between the polygon marks of a run, or the whole run if it has none, with empty labels."""
    instances: list[list[Piece]] = []
    for _, run in _phrases(pieces):
        parts = _parts(run)
        marked = [part for inside, part in parts if inside]
        instances += marked or [part for _, part in parts]
    polygons = [outlines for outlines in (_outlines(part, size) for part in instances) if outlines]
    return Polygons(polygons, [""] * len(polygons))


def _boxes_and_polygons(pieces: Sequence[Piece], size: Size) -> BoxesAndPolygons:
    """Return locations between polygon marks as polygons, and all others as boxes."""
    corners: list[tuple[str, list[Piece]]] = []
    instances: list[tuple[str, list[list[float]]]] = []
    for text, run in _phrases(pieces):
        label = _label(text)
        for inside, part in _parts(run):
            outlines = _outlines(part, size) if inside else []
            if outlines:
                instances.append((label, outlines))
            elif not inside:
                corners += [(label, four) for four in _fours(part)]
    boxes = _boxes(corners, size)
    polygons, polygons_labels = [outlines for _, outlines in instances], [label for label, _ in instances]
    return BoxesAndPolygons(boxes.bboxes, boxes.labels, polygons, polygons_labels, boxes.scores)


def _phrases(pieces: Sequence[Piece]) -> Iterator[tuple[str, list[Piece]]]:
    """Yield each text with the run of structural pieces after it, except unfinished runs of fewer than four."""
    text = ""
    for is_text, group in groupby(pieces, lambda piece: piece.kind is Kind.TEXT):
        stretch = list(group)
        if is_text:
            text = "".join(piece.text for piece in stretch)
        elif len(stretch) >= 4:
            yield text, stretch


def _parts(run: list[Piece]) -> list[tuple[bool, list[Piece]]]:
    """Split a run at its polygon marks into (whether it follows a `<poly>`, its locations and separators)."""
    parts: list[tuple[bool, list[Piece]]] = [(False, [])]
    for piece in run:
        if piece.kind in (Kind.POLYGON, Kind.POLYGON_END):
            parts.append((piece.kind is Kind.POLYGON, []))
        else:
            parts[-1][1].append(piece)
    return parts


def _location_stretches(run: list[Piece]) -> Iterator[list[Piece]]:
    for is_location, group in groupby(run, lambda piece: piece.kind is Kind.LOCATION):
        if is_location:
            yield list(group)


def _labeled_corners(pieces: Sequence[Piece]) -> Iterator[tuple[str, list[Piece]]]:
    for text, run in _phrases(pieces):
        for four in _fours(run):
            yield _label(text), four


def _fours(run: list[Piece]) -> Iterator[list[Piece]]:
    """Yield the corners of each box: every four adjacent locations, without leftovers."""
    for stretch in _location_stretches(run):
        for start in range(0, len(stretch) - 3, 4):
            yield stretch[start : start + 4]


def _outlines(part: list[Piece], size: Size) -> list[list[float]]:
    """Return the polygons of one instance, split at its separators; a last odd coordinate is dropped."""
    outlines = [_pixels(stretch[: len(stretch) // 2 * 2], size) for stretch in _location_stretches(part)]
    return [outline for outline in outlines if outline]


def _pixels(locations: list[Piece], size: Size) -> list[float]:
    """Return x, y, x, y, ... in pixels."""
    return [to_pixel(piece.location, size[i % 2]) for i, piece in enumerate(locations)]


def _label(text: str) -> str:
    return _STRAY_MARKUP.sub("", text).strip()


def _scores(boxes: list[list[Piece]]) -> list[float] | None:
    """Return exp of the mean log probability of each box's four locations, or None if they are unknown."""
    log_probs = [[piece.log_prob for piece in four if piece.log_prob is not None] for four in boxes]
    if any(len(four) < 4 for four in log_probs):
        return None
    return [math.exp(sum(four) / 4) for four in log_probs]
