"""Answers and their JSON, shaped as transformers shapes it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from florence2.answers import Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer, answer_from_json
from florence2.config import ModelConfig
from florence2.errors import InternalError
from florence2.tasks import TASKS, Grammar
from tests.reference import processor
from tests.tiny_model import tiny_config

BOX, QUAD, OUTLINE = [0.32, 1.0, 2.5, 4.75], [1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 1.0, 4.0], [0.5, 0.5, 9.5, 0.5, 5.0, 7.25]
ANSWERS = [
    (Grammar.TEXT, TextAnswer("naïve\n中文<loc_1>")),
    (Grammar.LABELED_BOXES, Boxes([BOX, BOX], ["a", "é"], [0.5, 1.0])),
    (Grammar.BARE_BOXES, Boxes([BOX], [""])),
    (Grammar.GROUNDING, Boxes([], [], [])),
    (Grammar.OCR, Quads([QUAD], ["line"])),
    (Grammar.POLYGONS, Polygons([[OUTLINE, OUTLINE]], [""])),
    (Grammar.BOXES_OR_POLYGONS, BoxesAndPolygons([BOX], ["a"], [[OUTLINE]], ["b"], [0.25])),
]


@pytest.mark.parametrize("grammar,answer", ANSWERS)
def test_answers_survive_the_way_through_json(grammar, answer):
    """Server and client hold equal values."""
    assert answer_from_json(grammar, json.loads(json.dumps(answer.to_json()))) == answer


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_keys_are_those_of_transformers(task):
    """Scores, which transformers does not give, are there only where known."""
    [theirs] = processor().post_process_generation(text="", task=task.token, image_size=(10, 10)).values()
    if task.grammar is Grammar.TEXT:
        assert TextAnswer("").to_json() == theirs
    else:
        answer = answer_from_json(task.grammar, theirs)
        assert answer.to_json() == theirs
        if hasattr(answer, "scores"):
            assert dataclasses.replace(answer, scores=[]).to_json() == {**theirs, "scores": []}


@pytest.mark.parametrize("grammar", Grammar)
@pytest.mark.parametrize("value", [None, 3, [], {"boxes": []}, {"bboxes": []}])
def test_foreign_json_is_refused(grammar, value):
    """A server that answers something else is reported, not a KeyError."""
    with pytest.raises(InternalError):
        answer_from_json(grammar, value)


def test_keys_of_later_versions_are_left_out():
    """Confidences were added like this, and clients from before could read no more boxes."""
    for grammar, answer in ANSWERS:
        if not isinstance(answer, TextAnswer):
            later = {**answer.to_json(), "areas": [1.0]}
            assert answer_from_json(grammar, later) == answer_from_json(None, later) == answer


def test_an_answer_to_a_prompt_of_ones_own_may_have_any_form():
    """Its JSON says which."""
    for grammar, answer in ANSWERS:
        value = json.loads(json.dumps(answer.to_json()))
        assert answer_from_json(None, value) == answer, grammar
    with pytest.raises(InternalError):
        answer_from_json(None, {"boxes": []})


def test_a_checkpoint_may_name_the_form_of_answers_to_its_own_prompts(tmp_path):
    """By how a prompt begins; tasks keep their grammar, everything else is text."""
    answers = {"<my_task>": "boxes", "Read": "text", "Read the lines": "quads"}
    dataclasses.replace(tiny_config(), answers=answers).save(tmp_path / "florence2.json")
    config = ModelConfig.load(tmp_path / "florence2.json")
    assert {task: config.grammar(task) for task in TASKS} == {task: row.grammar for task, row in TASKS.items()}
    prompts = ["<my_task>", "<my_task>a dog", "Read the lines.", "Read it", "<other>", "read the lines"]
    text = Grammar.TEXT
    assert [config.grammar(prompt) for prompt in prompts] == [
        Grammar.LABELED_BOXES, Grammar.LABELED_BOXES, Grammar.OCR, text, text, text,
    ]  # fmt: skip


def test_repositories_of_earlier_exports_name_no_forms(tmp_path):
    """Their file lacks the key."""
    values = dataclasses.asdict(tiny_config())
    del values["answers"]
    (tmp_path / "florence2.json").write_text(json.dumps(values))
    assert ModelConfig.load(tmp_path / "florence2.json") == tiny_config()
