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
from itertools import accumulate, groupby, takewhile, zip_longest
from typing import NamedTuple, TypeAlias

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.confidence import confidence, total
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
    """A piece of text, or one structural token with its bin (locations) and log probability (if known).

    `log_mass`, if known: the sum of those of its tokens (see `beam.Candidate`).
    """

    kind: Kind
    text: str
    location: int = 0
    log_prob: float | None = None
    log_mass: float | None = None


class Token(NamedTuple):
    """A generated token: its text, decoded by itself, its log probability, and its log mass if known."""

    text: str
    log_prob: float
    log_mass: float | None


_CONTROL = ("<s>", "</s>", "<pad>")
_TOKEN = re.compile(rf"({LOCATION_TOKEN}|<sep>|</?poly>|</?s>|<pad>)")
_BEGUN_TOKEN = re.compile(r"</?[a-z_]*-?[0-9]*$")
_STRAY_MARKUP = re.compile(
    r"</?(?:od|ocr|n?cap|dcap|grounding|seg|region_cap|region_to_desciption|proposal)>|<ground>|<obj>"  # sic
)


def pieces_from_text(text: str, tokens: Sequence[Token] = ()) -> list[Piece]:
    """Return the pieces of decoded text without `<s>`, `</s>` and `<pad>`.

    tokens: those of the text; without them, pieces have no probabilities. A token that the model spelled out is as
    probable as all the tokens that spell it together.
    """
    pieces = []
    for part, own in zip_longest(_TOKEN.split(text), _tokens_of_parts(tokens), fillvalue=()):
        log_mass = total([token.log_mass for token in own])
        if not part or part in _CONTROL:
            continue
        if not _TOKEN.fullmatch(part):
            pieces.append(Piece(Kind.TEXT, part, log_mass=log_mass))
            continue
        log_prob = total([token.log_prob for token in own])
        if part.startswith("<loc_"):
            pieces.append(Piece(Kind.LOCATION, part, location_of(part), log_prob, log_mass))
        else:
            pieces.append(Piece(Kind(part), part, 0, log_prob, log_mass))
    return pieces


def _tokens_of_parts(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Yield the tokens of each part of the text: before, in and after each structural token.

    Half a character is garbled in a token decoded by itself, but structural tokens are ASCII: the same ones are found,
    in the same order, as in the whole text.
    """
    ends, done = list(accumulate(len(token.text) for token in tokens)), 0
    for match in _TOKEN.finditer("".join(token.text for token in tokens)):
        first, last = bisect_right(ends, match.start()), bisect_left(ends, match.end())
        yield tokens[done:first]
        yield tokens[first : last + 1]
        done = last + 1
    yield tokens[done:]


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

    `banned_phrases` are dropped from phrase grounding. Boxes have scores if the log probabilities are known, and
    everything located in the image has a confidence if the log masses are known.
    """
    match grammar:
        case Grammar.TEXT:
            return TextAnswer("".join(piece.text for piece in pieces).strip())
        case Grammar.OCR:
            return _quads(pieces, size)
        case Grammar.LABELED_BOXES:
            return _boxes(_labeled_corners(pieces), size)
        case Grammar.BARE_BOXES:
            bare = [_Located("", each.log_mass, four) for each in _phrases(pieces) for four in _fours(each.run)]
            return _boxes(bare, size)
        case Grammar.GROUNDING:
            return _boxes([each for each in _labeled_corners(pieces) if each.label not in banned_phrases], size)
        case Grammar.POLYGONS:
            return _polygons(pieces, size)
        case Grammar.BOXES_OR_POLYGONS:
            return _boxes_and_polygons(pieces, size)


@dataclass(frozen=True)
class _Phrase:
    """A text, its log mass, and the structural pieces after it."""

    text: str
    log_mass: float | None
    run: list[Piece]


@dataclass(frozen=True)
class _Located:
    """A label and its locations: the corners of a box or quad, or an instance's points and separators."""

    label: str
    log_mass: float | None  # of the label
    locations: list[Piece]


def _confidences(found: Sequence[_Located]) -> list[float] | None:
    """Return how sure the model is of each, if the log masses are known."""
    masses = [[piece.log_mass for piece in each.locations if piece.kind is Kind.LOCATION] for each in found]
    known = [confidence(each.log_mass, own) for each, own in zip(found, masses, strict=True)]
    return [value for value in known if value is not None] if None not in known else None


def _boxes(found: Sequence[_Located], size: Size) -> Boxes:
    """Return boxes, scored with exp of the mean log probability of their four locations if these are known."""
    log_probs = [total([piece.log_prob for piece in box.locations]) for box in found]
    known = [math.exp(log_prob / 4) for log_prob in log_probs if log_prob is not None]
    return Boxes(
        [_pixels(box.locations, size) for box in found],
        [box.label for box in found],
        known if len(known) == len(found) else None,
        _confidences(found),
    )


def _quads(pieces: Sequence[Piece], size: Size) -> Quads:
    """Return the lines of text that have all their corners."""
    lines = []
    for phrase in _phrases(pieces):
        corners = next(_location_stretches(phrase.run), [])[:8]
        if phrase.text and len(corners) == 8:  # corners need a line
            lines.append(_Located(" ".join(_labels(phrase.text)), phrase.log_mass, corners))
    return Quads([_pixels(line.locations, size) for line in lines], [line.label for line in lines], _confidences(lines))


def _polygons(pieces: Sequence[Piece], size: Size) -> Polygons:
    """Return the instances between the polygon marks of a run, or the whole run if it has none, with empty labels."""
    instances: list[_Located] = []
    for phrase in _phrases(pieces):
        parts = _parts(phrase.run)
        marked = [part for inside, part in parts if inside]
        instances += [_Located("", phrase.log_mass, part) for part in marked or [part for _, part in parts]]
    found = [instance for instance in instances if _outlines(instance.locations, size)]
    polygons = [_outlines(instance.locations, size) for instance in found]
    return Polygons(polygons, [""] * len(polygons), _confidences(found))


def _boxes_and_polygons(pieces: Sequence[Piece], size: Size) -> BoxesAndPolygons:
    """Return locations between polygon marks as polygons, and all others as boxes."""
    corners: list[_Located] = []
    instances: list[_Located] = []
    for phrase in _phrases(pieces):
        labels = _labels(phrase.text)
        for inside, part in _parts(phrase.run):
            if not inside:
                corners += [_Located(label, phrase.log_mass, four) for four in _fours(part) for label in labels]
            elif _outlines(part, size):
                instances += [_Located(label, phrase.log_mass, part) for label in labels]
    boxes, confidences = _boxes(corners, size), _confidences([*corners, *instances])
    return BoxesAndPolygons(
        boxes.bboxes,
        boxes.labels,
        [_outlines(instance.locations, size) for instance in instances],
        [instance.label for instance in instances],
        boxes.scores,
        None if confidences is None else confidences[: len(corners)],
        None if confidences is None else confidences[len(corners) :],
    )


def _phrases(pieces: Sequence[Piece]) -> Iterator[_Phrase]:
    """Yield each text with the run of structural pieces after it, except unfinished runs of fewer than four."""
    text: list[Piece] = []
    for is_text, group in groupby(pieces, lambda piece: piece.kind is Kind.TEXT):
        stretch = list(group)
        if is_text:
            text = stretch
        elif len(stretch) >= 4:
            log_mass = total([piece.log_mass for piece in text]) if text else 0.0
            yield _Phrase("".join(piece.text for piece in text), log_mass, stretch)


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


def _labeled_corners(pieces: Sequence[Piece]) -> list[_Located]:
    return [
        _Located(label, phrase.log_mass, four)
        for phrase in _phrases(pieces)
        for four in _fours(phrase.run)
        for label in _labels(phrase.text)
    ]


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
