"""One rule says what a task means, for library, command line, batch and page."""

from __future__ import annotations

import inspect
import re
import warnings

import pytest

from florence2.errors import InvalidPrompt
from florence2.tasks import OTHER_NAMES, TASKS, TaskInput
from florence2_client import Client, Prompt, UnmarkedPrompt, parse_task
from florence2_client.methods import TaskMethods
from florence2_client.request import build_request
from florence2_client.tasks import prompts_of
from tests.unit.client.fake_transport import png


def sent(task: str, text: str | None = None, **options: object) -> tuple[bytes, bytes | None]:
    tensors = build_request(png((100, 100)), task, text, **options).tensors
    return tensors["TASK"][0], tensors["TEXT"][0] if "TEXT" in tensors else None


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_name_is_recognized_in_any_spelling(task):
    words = task.name.split("_")
    spellings = [
        task.token, task.token.lower(), task.name, task.name.upper(), "-".join(words), " ".join(words), "".join(words),
        "".join(word.title() for word in words), f" {' '.join(words)}\n", f"<{' '.join(words)}>", "\u2013".join(words),
    ]  # fmt: skip
    assert {parse_task(spelling).sent for spelling in spellings} == {task.token}


@pytest.mark.parametrize(("name", "token"), OTHER_NAMES.items())
def test_a_usual_name_is_recognized(name, token):
    assert parse_task(name).sent == parse_task(name.upper().replace("_", " ")).sent == token


def test_the_name_of_a_method_is_the_name_of_its_task():
    for name, method in inspect.getmembers(TaskMethods, inspect.isfunction):
        if token := re.match(r".* `(<[A-Z_]+>)`\n", method.__doc__ or ""):
            assert parse_task(name).sent == token[1]


@pytest.mark.parametrize(
    "token", ["<GENERATE_TAGS>", "<MIXED_CAPTION>", "<ANALYZE>", "<DocVQA>", "<DocVQA>What?", "<DETECT>", "<my task>"]
)
def test_a_token_in_brackets_passes_through(token):
    parsed = parse_task(token)
    assert (parsed.sent, parsed.known, parsed.note, parsed.takes) == (token, None, None, TaskInput.NONE)
    assert sent(token, "What?") == (token.encode(), b"What?")


def test_the_text_behind_a_token_is_known():
    parsed = parse_task("<Open-Vocabulary Detection> a dog")
    assert parsed.sent == "<OPEN_VOCABULARY_DETECTION> a dog"
    assert parsed.known == TASKS["<OPEN_VOCABULARY_DETECTION>"]
    assert (parsed.text, parsed.takes) == ("a dog", TaskInput.TEXT)


@pytest.mark.parametrize(
    ("mistake", "meant"),
    [
        ("captoin", "did you mean caption?"),
        ("Captoin", "did you mean caption?"),
        ("captions", "did you mean caption?"),
        ("caption?", "did you mean caption?"),
        ("detailed captoin", "did you mean detailed_caption?"),
        ("more-detailed", "did you mean more_detailed_caption?"),
        ("ocr wiht region", "did you mean ocr_with_region?"),
        ("open vocab detection", "did you mean open_vocabulary_detection?"),
        ("referring segmentation", "did you mean referring_expression_segmentation?"),
        ("detct", "did you mean detect?"),
        ("segmant", "did you mean segment?"),
        ("nope", "`florence2 tasks` lists them"),
        ("DocVQA", "a fine-tune's own token is written in brackets"),
        ("caption,od", "names several tasks"),
        ("", "there is no task ''"),
        (Prompt(" "), "there is no task ' '"),
        ("x" * 100_000, "there is no task 'x{60}…'"),
        (None, "not a value of type NoneType"),
        (b"od", "not a value of type bytes"),
    ],
)
def test_a_mistake_is_refused_with_what_was_probably_meant(mistake, meant):
    with pytest.raises(InvalidPrompt, match=re.escape(meant).replace(r"x\{60\}", "x{60}")) as caught:
        Client(transport=object()).run(png(), mistake)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("prompt", ["What is the date?", "Describe the image", "What?", "描述这张图片"])
def test_a_free_prompt_is_announced(prompt):
    with pytest.warns(UnmarkedPrompt, match="sent to the model as a free prompt"):
        assert sent(prompt)[0] == prompt.encode()


def test_a_token_that_looks_misspelled_is_announced():
    with pytest.warns(UnmarkedPrompt, match="<CAPTOIN> is no task token of Florence-2 .* did you mean <CAPTION>?"):
        assert sent("<CAPTOIN>")[0] == b"<CAPTOIN>"


@pytest.mark.parametrize("prompt", ["nope", "captoin", "What is the date?", "od"])
def test_a_marked_prompt_is_sent_as_it_is(prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sent(Prompt(prompt))[0] == prompt.encode()


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("region_to_ocr", "10,20,30,40", (b"<REGION_TO_OCR>", b"5.0,10.0,15.0,20.0")),
        ("<region to ocr>10,20,30,40", None, (b"<REGION_TO_OCR>5.0,10.0,15.0,20.0", None)),
    ],
)
def test_a_region_is_scaled_with_its_image(task, text, expected):
    assert sent(task, text, max_side=50) == expected


OWN = ("<DocVQA>", "What?")


@pytest.mark.parametrize(
    ("tasks", "given", "sent"),
    [
        (["caption", "od"], [], [("caption", None), ("od", None)]),
        (["find"], ["a", "b"], [("find", "a"), ("find", "b")]),
        (["caption", "find", "segment"], ["a", "b"],
         [("caption", None), ("find", "a"), ("find", "b"), ("segment", "a"), ("segment", "b")]),
        (["find", "ocr_region"], ["a", "1,2,3,4", (5, 6, 7, 8), "<loc_1><loc_2><loc_3><loc_4>"],
         [("find", "a"), ("ocr_region", "1,2,3,4"), ("ocr_region", (5, 6, 7, 8)),
          ("ocr_region", "<loc_1><loc_2><loc_3><loc_4>")]),
        (["find", "ocr_region"], ["a"], [("find", "a"), ("ocr_region", None)]),
        ([("find", "own"), "segment"], ["a"], [("find", "own"), ("segment", "a")]),
        (["<REGION_TO_OCR>1,2,3,4", "segment"], ["a"], [("<REGION_TO_OCR>1,2,3,4", None), ("segment", "a")]),
        (["<DocVQA>", "find"], ["a"], [("<DocVQA>", "a"), ("find", "a")]),
        (["<DocVQA>What?", "find"], ["a"], [("<DocVQA>What?", None), ("find", "a")]),
        ([Prompt("a prompt of one's own"), "od"], ["a"], [("a prompt of one's own", "a"), ("od", None)]),
        ([Prompt("a prompt of one's own"), "find"], ["a"], [("a prompt of one's own", None), ("find", "a")]),
        ([OWN, "od"], [], [OWN, ("od", None)]),
        (["caption", "od"], [" "], [("caption", None), ("od", None)]),
        (["captoin", "find"], ["a"], [("captoin", None), ("find", "a")]),
    ],
)  # fmt: skip
def test_a_text_goes_to_the_tasks_that_take_it(tasks, given, sent):
    """Each is sent to those of its kind, and a blank one to none that takes none."""
    assert prompts_of(tasks, given) == sent
