"""Prompts against transformers' `Florence2Processor`, and what it accepts but is refused here."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence2.errors import InvalidPrompt
from florence2.locations import region_tokens
from florence2.prompts import CONTROL_TOKENS, MAX_CHARACTERS, build_prompt
from florence2.tasks import TASKS, TaskInput
from tests.reference import processor

SIZE = (640, 480)
REGION = "<loc_52><loc_332><loc_932><loc_774>"
anything = st.text(st.characters(), max_size=40)  # lone surrogates, NUL and all
fragments = st.lists(
    st.sampled_from([*TASKS, *CONTROL_TOKENS, REGION, "<loc_1>", "a cat", " ", "{input}", "1,2,3,4", ","])
)


def tasks_taking(kind):
    return [task.token for task in TASKS.values() if task.input is kind]


def sample_text(task):
    return {TaskInput.NONE: None, TaskInput.TEXT: "a {green} car", TaskInput.REGION: REGION}[task.input]


def their_prompt(text):
    return processor()._construct_prompts(text)[0]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_reads_as_in_transformers(task):
    """The words of each task equal the processor's, however the text is handed over."""
    text = sample_text(task)
    expected = their_prompt(task.token + (text or ""))
    assert build_prompt(task.token, text, SIZE).text == expected
    assert build_prompt(f" {task.token} {text or ''}\n", None, SIZE).text == expected
    assert build_prompt(task.token, text, SIZE).key == task.token


def test_the_table_has_the_tasks_of_transformers():
    """Every task of the processor is known, and none besides."""
    theirs = processor()
    assert set(TASKS) == {*theirs.task_prompts_without_inputs, *theirs.task_prompts_with_input}
    assert {t.token: t.grammar.value for t in TASKS.values()} == theirs.tasks_answer_post_processing_type


@given(st.sampled_from(tasks_taking(TaskInput.TEXT)), st.text(min_size=1, max_size=60))
def test_phrases_are_put_in_as_in_transformers(token, phrase):
    """Whatever phrase is accepted reads as the processor would have it."""
    try:
        prompt = build_prompt(token, phrase, SIZE)
    except InvalidPrompt:
        return
    assert prompt.text == their_prompt(token + phrase)


@pytest.mark.parametrize("words", ["What is this?", "<VQA>What is this?", " <od> x ", "<DocVQA>", "[1, 2]", "{input}"])
def test_other_words_are_read_as_they_are(words):
    """Without a task the prompt is the client's own, and it names the answer."""
    prompt = build_prompt(words, None, SIZE)
    assert (prompt.task, prompt.key, prompt.text) == (None, words, their_prompt(words))


@pytest.mark.parametrize(
    "task,text,expected",
    [
        ("<DocVQA>", "How much?", "<DocVQA>How much?"),
        ("What is", "this?", "What is this?"),
        ("What is ", "this?", "What is this?"),
        ("What is", "\nthis? ", "What is\nthis? "),
        ("detect", "<loc_1>", "detect <loc_1>"),
    ],
)
def test_the_text_of_a_free_prompt_follows_it(task, text, expected):
    """Words are joined with a space. Fine-tunes are trained on a token and then the text, without one."""
    prompt = build_prompt(task, text, SIZE)
    assert (prompt.key, prompt.text) == (task, expected)


@pytest.mark.parametrize("token", tasks_taking(TaskInput.REGION))
@pytest.mark.parametrize("pixels", ["64,48,320,479", " 64.0 , 48, 3.2e2,\t479.0 "])
def test_a_region_may_be_given_in_pixels(token, pixels):
    """Pixels of the image become the tokens of their bins."""
    expected = build_prompt(token, "<loc_100><loc_100><loc_500><loc_997>", SIZE)
    assert build_prompt(token, pixels, SIZE) == build_prompt(token + pixels, None, SIZE) == expected


def test_a_region_is_clamped_to_the_image():
    """What juts out is cut off."""
    prompt = build_prompt("<REGION_TO_OCR>", "-20,-1e9,320,1e308", SIZE)
    assert region_tokens((0, 0, 320, 480), SIZE) in prompt.text


@pytest.mark.parametrize("token", tasks_taking(TaskInput.REGION))
@pytest.mark.parametrize("number", ["1000", "1234", "9" * 5000])
def test_locations_beyond_the_last_bin_count_as_the_last(token, number):
    """Programs that scale to 0..1000 send them for the far edges; they are no tokens of the vocabulary."""
    prompt = build_prompt(token, f"<loc_0><loc_0><loc_{number}><loc_{number}>", SIZE)
    assert prompt == build_prompt(token, "<loc_0><loc_0><loc_999><loc_999>", SIZE)


@pytest.mark.parametrize("token", tasks_taking(TaskInput.REGION))
@pytest.mark.parametrize(
    "region",
    [
        *["a cat", "1,2,3", "1,2,3,4,5", "1,2,nan,4", "1,2,inf,4", "1,2,1e999,4", "1_0,2,30,4", "1 2 3 4"],
        *["10,2,1,4", "1,4,3,2", "640,0,700,10", "0,480,10,500", "-9,-9,-1,-1"],
        *["<loc_1><loc_2><loc_3>", REGION + "<loc_1>", "x" + REGION, "<loc_1> <loc_2> <loc_3> <loc_4>"],
        *["<loc_1><loc_2><loc_3><loc_04>", "<loc_-1><loc_2><loc_3><loc_4>"],
    ],
)
def test_half_a_region_is_refused(token, region):
    """A region is four location tokens or a box that overlaps the image; everything else is refused."""
    with pytest.raises(InvalidPrompt, match="region"):
        build_prompt(token, region, SIZE)


@pytest.mark.parametrize("token", tasks_taking(TaskInput.NONE))
def test_superfluous_text_is_refused(token):
    """A task that takes no text says so."""
    with pytest.raises(InvalidPrompt, match=f"{token} takes no text"):
        build_prompt(token, "a cat", SIZE)
    with pytest.raises(InvalidPrompt, match=f"{token} takes no text"):
        build_prompt(f"{token}a cat", None, SIZE)


@pytest.mark.parametrize("token", tasks_taking(TaskInput.TEXT) + tasks_taking(TaskInput.REGION))
@pytest.mark.parametrize("text", [None, "", " \n"])
def test_missing_text_is_refused(token, text):
    """The message names the task and what it takes."""
    with pytest.raises(InvalidPrompt, match=f"{token} takes a (phrase|region)"):
        build_prompt(token, text, SIZE)


@pytest.mark.parametrize("task", [*tasks_taking(TaskInput.NONE), "<OPEN_VOCABULARY_DETECTION>a cat", "What is this?"])
@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_blank_text_counts_as_absent(task, text):
    """Many clients always send TEXT, if only as an empty string."""
    assert build_prompt(task, text, SIZE) == build_prompt(task, None, SIZE)


@pytest.mark.parametrize("task,text", [("", None), (" \n", None), ("", "a cat"), (" ", "")])
def test_an_empty_prompt_is_refused(task, text):
    """TEXT cannot take the place of TASK."""
    with pytest.raises(InvalidPrompt, match="empty"):
        build_prompt(task, text, SIZE)


def test_a_text_given_twice_is_refused():
    """`<TASK>text` leaves no room for TEXT."""
    with pytest.raises(InvalidPrompt, match="once"):
        build_prompt("<OPEN_VOCABULARY_DETECTION>a cat", "a dog", SIZE)


@pytest.mark.parametrize("control", CONTROL_TOKENS)
def test_control_tokens_are_refused(control):
    """They would become single ids in the middle of the prompt and break it."""
    for task, text in [
        ("<OPEN_VOCABULARY_DETECTION>", f"a {control}cat"),
        (f"tell me {control}", None),
        ("<OD>" + control, None),
    ]:
        with pytest.raises(InvalidPrompt, match="control token"):
            build_prompt(task, text, SIZE)


@pytest.mark.parametrize(
    "task,text", [("<CAPTION_TO_PHRASE_GROUNDING>", "a <OD> sign"), ("please <OD>", None), ("<OD><OD>", None)]
)
def test_a_task_token_inside_other_words_is_refused(task, text):
    """The processor would drop it, or answer another task."""
    with pytest.raises(InvalidPrompt):
        build_prompt(task, text, SIZE)


@pytest.mark.parametrize("length", [20_001, 100_000, 10_000_000])
def test_absurd_lengths_are_refused_before_tokenizing(length):
    """Ten megabytes of text cost nothing, in TEXT as in TASK."""
    start = time.thread_time()
    for task, text in ("<OPEN_VOCABULARY_DETECTION>", "a" * length), ("a" * length, None):
        with pytest.raises(InvalidPrompt, match=f"{length:,} characters"):
            build_prompt(task, text, SIZE)
    assert time.thread_time() - start < 0.05


# Parts of everything that a pattern looks for. Repeated, they made one pattern try quadratically many ways to match.
PARTS = [
    "1",
    "1.",
    ".",
    "1e",
    "e1",
    "-",
    "+",
    ",",
    " ",
    "\n",
    "<",
    ">",
    "<A",
    "<loc_",
    "<loc_1>",
    "<OD>",
    "<s>",
    "x",
    "é",
]


@settings(deadline=None)
@given(
    st.sampled_from(["", *TASKS]),
    st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from([1, 2, 5_000, 20_000])), min_size=1, max_size=6),
)
@example("<REGION_TO_CATEGORY>", [("1", 20_000), ("x", 1), (",", 3)])
def test_no_text_takes_long(task, runs):
    """Whatever is repeated however often: the patterns are linear."""
    text = "".join(part * times for part, times in runs)[: MAX_CHARACTERS - 10]
    start = time.thread_time()
    for request in (task, text), (task + text, None), (text, text):
        with contextlib.suppress(InvalidPrompt):
            build_prompt(*request, SIZE)
    assert time.thread_time() - start < 0.1


@given(
    anything | fragments.map("".join),
    st.none() | anything | fragments.map("".join),
    st.tuples(st.integers(1), st.integers(1)),
)
def test_every_request_gets_a_prompt_or_one_sentence(task, text, size):
    """No other exception, and a refusal is one line."""
    try:
        prompt = build_prompt(task, text, size)
    except InvalidPrompt as error:
        assert str(error).isprintable() and len(str(error)) < 200
    else:
        assert prompt.text.strip()
        prompt.text.encode()
