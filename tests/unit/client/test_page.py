"""The parts of the web page that need neither a server nor a browser: cards, previews and fields."""

from __future__ import annotations

import base64
import io
import json
import re

import gradio as gr
import pytest
from PIL import Image

from florence2.contract import OPTIONS
from florence2.errors import InvalidOption, InvalidPrompt
from florence2_client import Client
from florence2_client.page.cards import card_html, heading
from florence2_client.page.images import LARGEST_SIDE, preview_of
from florence2_client.page.layout import LABELS, Answers
from florence2_client.page.requests import MOST_REQUESTS, Card, ask, card_of, given_options, running
from florence2_client.result import Result
from tests.unit.client.fake_transport import outputs
from tests.unit.client.heic import HEIC

BOX, LINE = [1.0, 2.0, 30.0, 20.0], [1.0, 2.0, 30.0, 2.0, 30.0, 20.0, 1.0, 20.0]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "my image.png"
    Image.new("RGB", (40, 30), "white").save(path)
    return str(path)


def result(task, answer, finish_reason="stop"):
    return Result.from_dict(
        {"task": task, "answer": answer, "text": "", "finish_reason": finish_reason, "num_tokens": 9, "score": 0.0,
         "image_size": [40, 30]}
    )  # fmt: skip


def shown(image, task, answer, **more):
    """Return the card of an answer, and its HTML."""
    card = card_of(task, image, result(task, answer, **more), 0.5)
    return card, card_html(0, card, image, lambda _image, name: f"saved/{name}")


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("<OD>", {"bboxes": [], "labels": [], "scores": []}),
        ("<CAPTION_TO_PHRASE_GROUNDING>", {"bboxes": [], "labels": []}),
        ("<REGION_PROPOSAL>", {"bboxes": [], "labels": []}),
        ("<OCR_WITH_REGION>", {"quad_boxes": [], "labels": []}),
        ("<REFERRING_EXPRESSION_SEGMENTATION>", {"polygons": [], "labels": []}),
        ("<REGION_TO_SEGMENTATION>", {"polygons": [[[]]], "labels": [""]}),
        ("<OPEN_VOCABULARY_DETECTION>", {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []}),
        ("<CAPTION>", ""),
        ("<OCR>", "  \n"),
        ("<REGION_TO_CATEGORY>", "<loc_1><loc_2><loc_3><loc_4>"),
        ("a prompt of one's own", ""),
    ],
)
def test_nothing_found_is_said(image, task, answer):
    card, page = shown(image, task, answer)
    assert card.empty and "Nothing found." in page and "Copy text" not in page and " found ·" not in page
    growing, page = shown(image, task, answer, finish_reason="")
    assert not growing.empty and "Nothing found." not in page


@pytest.mark.parametrize(
    ("task", "answer", "words", "count"),
    [
        ("<OD>", {"bboxes": [BOX, BOX], "labels": ["dog", "cat"], "confidences": [0.04, 0.5]}, "dog\ncat", 2),
        ("<REGION_PROPOSAL>", {"bboxes": [BOX], "labels": [""]}, "", 1),
        ("<OCR_WITH_REGION>", {"quad_boxes": [LINE], "labels": ["a <b> & c"]}, "a <b> & c", 1),
        ("<REFERRING_EXPRESSION_SEGMENTATION>", {"polygons": [[LINE]], "labels": [""]}, "", 1),
        (
            "<OPEN_VOCABULARY_DETECTION>",
            {"bboxes": [BOX], "bboxes_labels": ["x"], "polygons": [[LINE]], "polygons_labels": ["y"]}, "x\ny", 2,
        ),
        ("<CAPTION>", "a dog", "a dog", 0),
        ("<REGION_TO_CATEGORY>", "dog<loc_1><loc_2><loc_3><loc_4>", "dog", 0),
    ],
)  # fmt: skip
def test_an_answer_can_be_copied_and_downloaded(image, task, answer, words, count):
    """The words to copy are the text or the labels; the JSON is the whole result; names say image and task."""
    card, page = shown(image, task, answer)
    assert (card.words, card.empty) == (words, False) and "Nothing found" not in page
    assert ("Copy text" in page) == bool(words)
    assert (f"{count} found ·" in page) == bool(count)
    assert ("how sure the model is" in page) == ("confidences" in answer)
    name = f"my-image.{task.strip('<>').lower()}"
    assert f'href="saved/{name}.jpg" download="{name}.jpg"' in page
    [encoded] = re.findall(f'href="data:application/json;base64,([^"]*)" download="{name}.json"', page)
    assert Result.from_dict(json.loads(base64.b64decode(encoded))) == result(task, answer)
    assert "<b>" not in page


def test_a_card_shows_progress_until_it_is_complete(image):
    """A running request and a growing answer have a progress bar; errors and complete answers have none."""
    assert "<progress" in card_html(0, Card("od"), image, str)
    assert "<progress" in shown(image, "<CAPTION>", "a do", finish_reason="")[1]
    assert "<progress" not in shown(image, "<CAPTION>", "a dog")[1]
    error = card_html(0, Card("od", error="<no>"), None, str)
    assert "<progress" not in error and 'role="alert">&lt;no&gt;<' in error


def test_headings_say_what_a_task_does():
    assert heading("od") == heading("<OD>") == "Objects with their categories (od)"
    assert heading("What is it?") == "What is it?"


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "tif"), ("I;16", "tiff"), ("CMYK", "tif"), ("RGBA", "webp"), ("P", "gif")]
)
def test_every_readable_format_has_a_preview(tmp_path, mode, suffix):
    """A JPEG of at most LARGEST_SIDE pixels, and the size of the image itself, upright."""
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (2000, 1000)).save(path)
    preview = preview_of(str(path))
    assert (preview.width, preview.height, preview.problem) == (2000, 1000, "")
    jpeg = Image.open(io.BytesIO(base64.b64decode(preview.image.removeprefix("data:image/jpeg;base64,"))))
    assert jpeg.format == "JPEG" and jpeg.size == (LARGEST_SIDE, LARGEST_SIDE // 2)


@pytest.mark.parametrize(("size", "saved"), [((70_000, 20), (65_500, 19)), ((300, 200), (300, 200))])
def test_very_long_images_can_be_shown_and_downloaded(tmp_path, monkeypatch, size, saved):
    """JPEG has at most 65,535 pixels a side."""
    path = tmp_path / "panorama.png"
    Image.new("RGB", size).save(path)
    assert preview_of(str(path)).width == size[0]
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with gr.Blocks():
        url = Answers(None, 1)._save(Image.open(path), "found.jpg")
    assert Image.open(url.removeprefix("gradio_api/file=")).size == saved


def test_an_unreadable_file_has_a_sentence_for_a_preview(tmp_path):
    path = tmp_path / "image.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    preview = preview_of(str(path))
    assert preview.image == "" and preview.problem and "<" not in preview.problem


def test_a_heic_photo_has_a_preview(tmp_path):
    pytest.importorskip("pi_heif")
    path = tmp_path / "photo.heic"
    path.write_bytes(HEIC)
    preview = preview_of(str(path))
    assert preview.image and preview.width and not preview.problem


@pytest.mark.parametrize("name", ["http://127.0.0.1:1/x.png", "data:image/png;base64,AAAA", "grpc://x", "iVBORw0KGgo="])
def test_the_page_takes_nothing_but_files(name):
    """A crafted request cannot make the page fetch a URL, which the client library would do for its own user."""
    assert preview_of(name).problem.startswith("there is no file")
    with Client("grpc://127.0.0.1:1", retry_for=0) as client:
        [(_, card)] = ask(client, name, ["od"], "", "", {})
    assert card.error.startswith("there is no file")


def test_options_are_those_that_were_filled_in():
    values = {"num_beams": " 4 ", "length_penalty": "-1.5", "early_stopping": False, "min_new_tokens": " "}
    fields = [values.get(option.keyword, None if option.type == "BOOL" else "") for option in OPTIONS]
    assert given_options(fields) == {"num_beams": 4, "length_penalty": -1.5, "early_stopping": False}
    for option in OPTIONS:
        if option.type != "BOOL":
            wrong = ["x" if other is option else None for other in OPTIONS]
            with pytest.raises(InvalidOption, match=f"{option.name} must be a (whole )?number, not 'x'"):
                given_options(wrong)


def test_labels_belong_to_options():
    assert LABELS.keys() <= {option.keyword for option in OPTIONS}


def test_each_line_is_a_phrase_of_its_own(image):
    """For tasks that take one: each has a card, which names the phrase. A single line is shown as it was."""
    tasks, text = ["od", "open_vocabulary_detection", "a prompt of one's own"], " a dog\n\na <red> car "
    cards = running(tasks, text)
    assert [(card.task, card.phrase) for card in cards] == [
        ("od", ""), ("open_vocabulary_detection", "a dog"), ("open_vocabulary_detection", "a <red> car"),
        ("a prompt of one's own", ""),
    ]  # fmt: skip
    assert "(open_vocabulary_detection): a &lt;red&gt; car</h3>" in card_html(2, cards[2], image, str)
    assert [card.phrase for card in running(tasks, "a dog\n")] == ["", "", ""]
    with pytest.raises(InvalidPrompt, match=f"these are {MOST_REQUESTS + 1} requests"):
        running(["open_vocabulary_detection"], "a dog\n" * (MOST_REQUESTS + 1))


def test_the_page_sends_each_phrase(image):
    """Each card has the answer to its own request, or its own error."""

    class Server:
        def infer(self, model, tensors, timeout):
            phrase = tensors["TEXT"][0].decode()
            if phrase == "a cat":
                raise InvalidPrompt("no cats")
            answer = {"bboxes": [[1, 2, 3, 4]], "bboxes_labels": [phrase], "polygons": [], "polygons_labels": []}
            return outputs("<OPEN_VOCABULARY_DETECTION>", answer)

        def close(self):
            pass

    with Client(transport=Server()) as client:
        cards = dict(ask(client, image, ["find"], "a dog\na cat\na car", "", {}))
    assert [(cards[place].phrase, cards[place].words, cards[place].error) for place in range(3)] == [
        ("a dog", "a dog", None), ("a cat", "", "no cats"), ("a car", "a car", None),
    ]  # fmt: skip
