"""The merged answer as text."""

from __future__ import annotations

from florence2.answers import Boxes, BoxesAndPolygons, Quads
from florence2.parsing import parse, pieces_from_text
from florence2.tasks import Grammar
from florence2_client.merging import generated_text
from tests.unit.client.merging.parts import SIZE


def test_the_text_of_a_merged_answer_reads_as_the_answer():
    """It is what a model would generate, with places in the whole image, to the precision of a bin."""
    answers = {
        Grammar.LABELED_BOXES: Boxes([[10.5, 20.4, 300.5, 400.4]], ["dog"]),
        Grammar.OCR: Quads([[10.5, 20.4, 300.5, 20.4, 300.5, 40.4, 10.5, 40.4]], ["two words"]),
        Grammar.BOXES_OR_POLYGONS: BoxesAndPolygons(
            [[10.5, 20.4, 30.5, 40.4]],
            ["dog"],
            [[[1.5, 2.0, 3.5, 4.4, 5.5, 6.0], [7.5, 8.4, 9.5, 10.0, 11.5, 12.4]]],
            ["cat"],
        ),
    }
    for grammar, answer in answers.items():
        again = parse(grammar, pieces_from_text(generated_text(answer, SIZE)), SIZE, ())
        assert generated_text(again, SIZE) == generated_text(answer, SIZE)
        assert {name: getattr(again, name) for name in answer.to_json() if "labels" in name} == {
            name: values for name, values in answer.to_json().items() if "labels" in name
        }
