"""Answers as typed values and as JSON in the form of transformers' `post_process_generation`.

The parser creates them, the postprocess model sends `to_json()`, and the client reads them with `answer_from_json`. All
coordinates are floats in pixels of the image as displayed. Flat lists alternate x and y.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import Any, TypeAlias, TypeVar

from florence2.errors import InternalError, InvalidRequest
from florence2.tasks import Grammar


@dataclass(frozen=True)
class TextAnswer:
    """The answer of captions, OCR and region tasks. Region answers keep the location tokens in their text."""

    text: str

    def to_json(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Lists:
    """An answer made of lists. Its fields are the keys of its JSON; absent scores and confidences have no key."""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Boxes(_Lists):
    """Boxes. `bboxes`: [x1, y1, x2, y2] each; `scores`: exp of the mean log probability of a box's four tokens.

    As in Microsoft's `post_process_generation`. A score is no probability that the object is there: the probability of
    an edge is spread over neighboring bins, so correct boxes have low scores too. Only their order means something.
    `confidences` are such probabilities, as far as the model knows them; see `confidence.confidence`.
    """

    bboxes: list[list[float]]
    labels: list[str]
    scores: list[float] | None = None
    confidences: list[float] | None = None


@dataclass(frozen=True)
class Quads(_Lists):
    """Lines of text. `quad_boxes`: [x1, y1, ..., x4, y4] each, the corners of a line; `labels`: the line."""

    quad_boxes: list[list[float]]
    labels: list[str]
    confidences: list[float] | None = None


@dataclass(frozen=True)
class Polygons(_Lists):
    """Outlines. `polygons`: a list of polygons per instance, each a flat list of x and y."""

    polygons: list[list[list[float]]]
    labels: list[str]
    confidences: list[float] | None = None


@dataclass(frozen=True)
class BoxesAndPolygons(_Lists):
    """The answer of open-vocabulary detection: boxes, polygons or both.

    `scores` and `confidences` are those of the boxes.
    """

    bboxes: list[list[float]]
    bboxes_labels: list[str]
    polygons: list[list[list[float]]]
    polygons_labels: list[str]
    scores: list[float] | None = None
    confidences: list[float] | None = None
    polygons_confidences: list[float] | None = None


Answer: TypeAlias = TextAnswer | Boxes | Quads | Polygons | BoxesAndPolygons
AnswerT = TypeVar("AnswerT", bound=Answer)

_OF_OBJECTS: dict[type[_Lists], tuple[tuple[str, ...], ...]] = {  # fields with an item for each object
    Boxes: (("confidences", "bboxes", "labels", "scores"),),
    Quads: (("confidences", "quad_boxes", "labels"),),
    Polygons: (("confidences", "polygons", "labels"),),
    BoxesAndPolygons: (
        ("confidences", "bboxes", "bboxes_labels", "scores"),
        ("polygons_confidences", "polygons", "polygons_labels"),
    ),
}

SHAPES: dict[Grammar, type[Boxes] | type[Quads] | type[Polygons] | type[BoxesAndPolygons]] = {
    Grammar.LABELED_BOXES: Boxes,
    Grammar.BARE_BOXES: Boxes,
    Grammar.GROUNDING: Boxes,
    Grammar.OCR: Quads,
    Grammar.POLYGONS: Polygons,
    Grammar.BOXES_OR_POLYGONS: BoxesAndPolygons,
}

# What answers to prompts of fine-tunes can be read as, in the words of users.
FORMS = {
    "text": Grammar.TEXT,
    "boxes": Grammar.LABELED_BOXES,
    "quads": Grammar.OCR,
    "polygons": Grammar.POLYGONS,
    "boxes_or_polygons": Grammar.BOXES_OR_POLYGONS,
}


def answer_from_json(grammar: Grammar | None, value: Any) -> Answer:
    """Return the answer that `to_json` converted. Raise InternalError if the value does not have the grammar's form.

    Unknown keys are left out, because servers of later versions may send more.

    grammar: None for a prompt that is not a task's, whose answer has any of the forms.
    """
    if isinstance(value, str) and grammar in (Grammar.TEXT, None):
        return TextAnswer(value)
    for shape in [SHAPES.get(grammar)] if grammar else SHAPES.values():
        try:
            if shape:
                return shape(**{key: item for key, item in value.items() if key in shape.__dataclass_fields__})
        except (AttributeError, TypeError):
            continue
    raise InternalError(f"the server's answer does not have the form {grammar.value if grammar else 'of any task'}")


def at_least(answer: AnswerT, minimum: float) -> AnswerT:
    """Return an answer without the objects whose confidence is lower. Text stays as it is.

    Raise InvalidRequest if the answer has no confidences: old servers give none, and text that is parsed has none.
    """
    if isinstance(answer, TextAnswer) or minimum <= 0:
        return answer
    kept: dict[str, Any] = {}
    for fields in _OF_OBJECTS[type(answer)]:
        confidences = getattr(answer, fields[0])
        if confidences is None:
            raise InvalidRequest("the answer has no confidences; a repository that was exported again gives them")
        sure = [confidence >= minimum for confidence in confidences]
        for name, values in ((name, getattr(answer, name)) for name in fields):
            kept[name] = None if values is None else list(compress(values, sure))
    return replace(answer, **kept)
