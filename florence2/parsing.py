"""Parse generated tokens into an answer, with one small function per grammar. The postprocess model calls this.

The grammars are those of transformers' `Florence2PostProcessor`. What its patterns lose or garble is kept here:
fractions of pixels, labels beyond ASCII, line breaks, `<` in a label, bare locations, boxes after polygons. An
unfinished box or line at the end is dropped, and an unclosed polygon is kept; the finish reason shows that the answer
was cut off.

A structural token counts as one even if the model spells it out in ordinary tokens. Fine-tunes spell `<loc_1000>`: it
is not in the vocabulary, but many were trained on it for everything that touches an edge of the image.
"""

from __future__ import annotations

import enum
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, takewhile
from typing import TypeAlias

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.locations import LOCATION_TOKEN, location_of, to_pixel
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


_CONTROL = ("<s>", "</s>", "<pad>")
_TOKEN = re.compile(rf"({LOCATION_TOKEN}|<sep>|</?poly>|</?s>|<pad>)")
_BEGUN_TOKEN = re.compile(r"</?[a-z_]*-?[0-9]*$")
_STRAY_MARKUP = re.compile(
    r"</?(?:od|ocr|n?cap|dcap|grounding|seg|region_cap|region_to_desciption|proposal)>|<ground>|<obj>"  # sic
)


def pieces_from_text(text: str, tokens: Sequence[tuple[str, float]] = ()) -> list[Piece]:
    """Return the pieces of decoded text without `<s>`, `</s>` and `<pad>`.

    tokens: each token of the text, decoded by itself, with its log probability; without them, pieces have none. A token
    that the model spelled out is as probable as all the tokens that spell it together.
    """
    pieces = []
    log_probs = _log_probs(tokens)
    for part in filter(None, _TOKEN.split(text)):
        if not _TOKEN.fullmatch(part):
            pieces.append(Piece(Kind.TEXT, part))
        elif part.startswith("<loc_"):
            pieces.append(Piece(Kind.LOCATION, part, location_of(part), next(log_probs, None)))
        elif part not in _CONTROL:
            pieces.append(Piece(Kind(part), part, log_prob=next(log_probs, None)))
    return pieces


def _log_probs(tokens: Sequence[tuple[str, float]]) -> Iterator[float]:
    """Yield the log probability of each structural token.

    Half a character is garbled in a token decoded by itself, but structural tokens are ASCII: the same ones are found,
    in the same order, as in the whole text.
    """
    ends = list(accumulate(len(text) for text, _ in tokens))
    for match in _TOKEN.finditer("".join(text for text, _ in tokens)):
        if match[0] not in _CONTROL:
            first, last = bisect_right(ends, match.start()), bisect_left(ends, match.end())
            yield sum(log_prob for _, log_prob in tokens[first : last + 1])


def without_half_character(text: str) -> str:
    """Return an incomplete answer without replacement characters at its end, whose other tokens may still come."""
    return text.rstrip("\ufffd")


def without_open_end(grammar: Grammar, pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Return the pieces of an incomplete answer without unfinished parts that the parser would accept.

    These are half a character, the beginning of a spelled-out token, and an unclosed polygon. The parser itself drops
    unfinished boxes, quads and labels.
    """
    if pieces and pieces[-1].kind is Kind.TEXT:
        text = without_half_character(pieces[-1].text)
        text = text if grammar is Grammar.TEXT else _BEGUN_TOKEN.sub("", text)
        if text:
            return [*pieces[:-1], replace(pieces[-1], text=text)]
        pieces = pieces[:-1]
    last_run = takewhile(lambda piece: piece.kind is not Kind.TEXT, reversed(pieces))
    marks = (piece.kind for piece in last_run if piece.kind in (Kind.POLYGON, Kind.POLYGON_END))
    in_polygon = grammar is Grammar.BOXES_OR_POLYGONS and next(marks, None) is Kind.POLYGON
    if grammar is Grammar.POLYGONS or in_polygon:
        return pieces[: 1 + max((i for i, piece in enumerate(pieces) if piece.kind is not Kind.LOCATION), default=-1)]
    return pieces


def parse(grammar: Grammar, pieces: Sequence[Piece], size: Size, banned_phrases: Collection[str]) -> Answer:
    """Return the answer in pixels of an image of `size`. Never fail: leave out what fits no structure.

    `banned_phrases` are dropped from phrase grounding. Boxes have scores if the log probabilities are known.
    """
    match grammar:
        case Grammar.TEXT:
            return TextAnswer("".join(piece.text for piece in pieces).strip())
        case Grammar.OCR:
            runs = [
                (" ".join(_labels(text)), next(_location_stretches(run), [])) for text, run in _phrases(pieces) if text
            ]
            lines = [(line, stretch[:8]) for line, stretch in runs if len(stretch) >= 8]  # corners need a line
            return Quads([_pixels(corners, size) for _, corners in lines], [line for line, _ in lines])
        case Grammar.LABELED_BOXES:
            return _boxes(list(_labeled_corners(pieces)), size)
        case Grammar.BARE_BOXES:
            return _boxes([("", four) for _, run in _phrases(pieces) for four in _fours(run)], size)
        case Grammar.GROUNDING:
            found = _labeled_corners(pieces)
            return _boxes([(label, corners) for label, corners in found if label not in banned_phrases], size)
        case Grammar.POLYGONS:
            return _polygons(pieces, size)
        case Grammar.BOXES_OR_POLYGONS:
            return _boxes_and_polygons(pieces, size)


def _boxes(found: list[tuple[str, list[Piece]]], size: Size) -> Boxes:
    """Return boxes, scored with exp of the mean log probability of their four locations if these are known."""
    log_probs = [[piece.log_prob for piece in four if piece.log_prob is not None] for _, four in found]
    known = all(len(four) == 4 for four in log_probs)
    return Boxes(
        [_pixels(four, size) for _, four in found],
        [label for label, _ in found],
        [math.exp(sum(four) / 4) for four in log_probs] if known else None,
    )


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
        labels = _labels(text)
        for inside, part in _parts(run):
            if not inside:
                corners += [(label, four) for four in _fours(part) for label in labels]
            elif outlines := _outlines(part, size):
                instances += [(label, outlines) for label in labels]
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
            for label in _labels(text):
                yield label, four


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


def _labels(text: str) -> list[str]:
    """Return the phrases that `<and>` separates, each of which names the locations that follow; one may be empty."""
    phrases = [phrase.strip() for phrase in _STRAY_MARKUP.sub("", text).split("<and>")]
    return [phrase for phrase in phrases if phrase] or [""]
