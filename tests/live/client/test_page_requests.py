"""The requests of the web page, sent to a running server without a browser."""

from __future__ import annotations

import pytest

from florence2.tasks import TASKS
from florence2_client import Client
from florence2_client.page import requests
from florence2_client.page.layout import EXAMPLE, EXAMPLES
from florence2_client.page.requests import ask
from florence2_client.request import Options


@pytest.fixture(scope="module")
def client(server):
    with Client(server.grpc_url) as client:
        yield client


def cards(client, image, tasks, text="", region="", **options):
    answered = dict(ask(client, image, tasks, text, region, options))
    return [answered[place] for place in range(len(tasks))]


def test_answers_grow_where_they_are_streamed(client, monkeypatch):
    """Unfinished cards first, then what a greedy search answers; an error is a card as always."""
    monkeypatch.setattr(requests, "PAUSE", 0)
    news = list(ask(client, EXAMPLE, ["more_detailed_caption", "od"], "", "", Options(num_beams=3), stream=True))
    for place, task in enumerate(["more_detailed_caption", "od"]):
        shown = [card for key, card in news if key == place]
        assert len(shown) > 1 or task == "od"  # a short one may be complete at once
        assert all("generating" in card.timing for card in shown[:-1]) and "generating" not in shown[-1].timing
        [greedy] = cards(client, EXAMPLE, [task], num_beams=1)
        assert shown[-1].words == greedy.words
        answers = [card.details["answer"] for card in (shown[-1], greedy)]
        if task == "od":  # in another company of requests, sums are rounded elsewhere
            for name in ("scores", "confidences"):
                numbers = [answer.pop(name) for answer in answers]
                assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
        assert answers[0] == answers[1]
    [(_, unsure)] = ask(client, EXAMPLE, ["od"], "", "", Options(), min_confidence=1.0)
    assert unsure.empty and unsure.details["answer"]["bboxes"] == []
    [(_, refused)] = ask(client, EXAMPLE, ["region_to_ocr"], "", "1,2,3", Options(), stream=True)
    assert "region" in refused.error


@pytest.mark.parametrize("label", EXAMPLES)
def test_examples_are_answered(client, label):
    """Each with an overlay, its JSON and its timing."""
    task, others, text, region = EXAMPLES[label]
    for card in cards(client, EXAMPLE, [task, *others], text, region):
        assert card.error is None
        assert card.overlay.size >= (768, 768)
        assert card.details["task"] == f"<{card.task.upper()}>"
        assert card.timing.endswith(" tokens/s") and f" {card.details['num_tokens']} tokens" in card.timing


def test_every_task_can_be_asked_at_once(client):
    """Each is given what it takes of the text and the region, and nothing else."""
    names = [task.name for task in TASKS.values()]
    answered = cards(client, EXAMPLE, names, "a yellow star", "278,88,480,306", num_beams=1)
    assert [card.error for card in answered] == [None] * len(names)
    assert answered[names.index("region_to_category")].words == "star"


def test_an_error_replaces_only_its_own_answer(client):
    """Say in a sentence what is missing, misspelled or refused; the other tasks are answered."""
    tasks = ["ocr", "region_to_ocr", "open_vocabulary_detection", "captoin"]
    answered = cards(client, EXAMPLE, tasks)
    assert answered[0].words == "NORTH JUICE"
    assert [card.error for card in answered[1:]] == [
        "draw a box on the image first",
        "enter a phrase or caption first",
        "there is no task 'captoin'; did you mean caption?",
    ]


def test_sentences_of_the_server_are_shown(client, tmp_path):
    """Show them unchanged, without a word of Triton's."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nonsense")
    [card] = cards(client, str(broken), ["od"])
    assert card.error == "the image is damaged or not in a format that can be read"
    [card] = cards(client, EXAMPLE, ["region_to_ocr"], region="900,0,950,10")
    assert card.error == "the region lies outside the image, which has 768 x 768 pixels"
    [card] = cards(client, EXAMPLE, ["od"], max_new_tokens=0)
    assert "max_new_tokens" in card.error.lower()


def test_a_cut_answer_says_so(client):
    [card] = cards(client, EXAMPLE, ["caption"], max_new_tokens=3)
    assert card.timing.endswith("cut off at the token limit")


def test_a_server_that_is_away_is_named():
    with Client("grpc://127.0.0.1:1", retry_for=0) as client:
        [card] = cards(client, EXAMPLE, ["od"])
    assert "is the server running?" in card.error


def test_tasks_are_read_as_everywhere(client):
    """Names in any spelling, tokens of fine-tunes with the text of the form, and free prompts, which are announced."""
    tasks = ["Detect", "<OPEN_VOCABULARY_DETECTION>a yellow star", "<DocVQA>", "What is it?"]
    answered = cards(client, EXAMPLE, tasks, "What?")
    assert [card.error for card in answered] == [None] * 4
    assert [card.details["task"] for card in answered] == ["<OD>", "<OPEN_VOCABULARY_DETECTION>", *tasks[2:]]
    assert [card.note for card in answered[:3]] == [None] * 3 and "free prompt" in answered[3].note
