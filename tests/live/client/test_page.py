"""The web page in a real browser, in front of a running server or of a client that records requests."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from PIL import Image

from florence2.contract import OPTIONS
from florence2_client.page import served_page
from florence2_client.page.layout import EXAMPLE
from florence2_client.result import Result

ROOT = Path(__file__).parents[3]


def test_the_page_names_no_other_host(page_url):
    """Nor where a link to share it would be."""
    with urlopen(page_url) as response:
        config = response.read().decode()
    assert '"share_url"' not in config and "fonts.googleapis" not in config


@pytest.mark.parametrize("path", ["/etc/passwd", f"{ROOT}/README.md", "../../etc/passwd", "http://127.0.0.1:8000/v2"])
def test_the_page_hands_out_no_files_of_the_machine(page_url, path):
    """Nor does it fetch for visitors what they cannot reach."""
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{page_url}/gradio_api/file={path}")
    assert refused.value.code in (403, 404)


ANSWERS = {"od": {"bboxes": [], "labels": []}, "ocr": "", "caption": "words"}


class Recorder:
    """A client that records each request and gives it the answer of its task, once `released` is set."""

    def __init__(self) -> None:
        self.requests, self.released = queue.SimpleQueue(), threading.Event()
        self.released.set()

    def run(self, image, task, text, finish_reason="stop", **options):
        self.requests.put((task, text, options))
        assert self.released.wait(60)
        return Result.from_dict(
            {"task": f"<{task.upper()}>", "answer": ANSWERS[task], "text": "", "finish_reason": finish_reason,
             "num_tokens": 1, "score": 0.0, "image_size": [768, 768]}
        )  # fmt: skip

    def stream(self, *request, **options):
        yield self.run(*request, finish_reason="", **options)
        self.released.clear()
        yield self.run(*request, **options)


@pytest.fixture
def recorded(visit):
    """A page whose client is a Recorder."""
    recorder = Recorder()
    with served_page(recorder, "a recorder", 60, "127.0.0.1", 0) as url:
        yield recorder, visit(url)


def test_stop_ends_the_waiting(recorded):
    """The button gives the form back at once; a response that comes afterwards is not shown, and the next one is."""
    recorder, desk = recorded
    recorder.released.clear()
    desk.upload(EXAMPLE)
    desk.button("Run").click()
    desk.answer().get_by_role("progressbar").wait_for()
    desk.button("Stop").click()
    desk.button("Run").wait_for()
    assert not desk.button("Stop").is_visible()
    recorder.released.set()
    desk.page.wait_for_timeout(500)
    assert desk.page.get_by_text("tokens/s").count() == 0
    desk.button("Run").click()
    desk.settled()
    assert desk.faults == []


def test_tasks_are_compared_side_by_side(desk):
    """By an example: four cards in two columns, with images, text, JSON; nothing was fetched from elsewhere."""
    desk.button("Four tasks side by side").click()
    desk.settled()
    for place in range(4):
        desk.answer(place).locator("img").wait_for()
    first, second = (desk.answer(place).bounding_box() for place in (0, 1))
    assert first["y"] == second["y"] and first["x"] < second["x"]
    desk.answer(0).locator(".words", has_text="a red triangle, a yellow star").wait_for()
    desk.answer(1).get_by_text("Show JSON").click()
    desk.answer(1).locator("pre", has_text="bboxes").wait_for()
    own = desk.page.url
    assert [address for address in desk.addresses if not address.startswith((own, "data:", "blob:"))] == []
    assert desk.faults == []


OPTION_VALUES = {
    "max_new_tokens": ("3", 3), "num_beams": ("1", 1), "no_repeat_ngram_size": ("0", 0),
    "length_penalty": ("-1.5", -1.5), "early_stopping": ("no", False), "min_new_tokens": ("2", 2),
    "repetition_penalty": ("1.25", 1.25), "suppress_repeated_bos": ("yes", True), "temperature": ("0.5", 0.5),
    "top_k": ("0", 0), "top_p": ("0.9", 0.9), "seed": (str(2**63 - 1), 2**63 - 1),
}  # fmt: skip


def test_each_option_is_sent_as_entered_and_only_it(recorded):
    """Opening the options sends none; one that was emptied is no longer sent."""
    assert set(OPTION_VALUES) == {option.keyword for option in OPTIONS}
    recorder, desk = recorded
    desk.upload(EXAMPLE)
    desk.choose("caption")
    desk.page.get_by_text("Options", exact=True).click()
    for option in [None, *OPTIONS]:
        if option:
            desk.fill(option, OPTION_VALUES[option.keyword][0])
        desk.button("Run").click()
        expected = {option.keyword: OPTION_VALUES[option.keyword][1]} if option else {}
        assert recorder.requests.get(timeout=30) == ("caption", None, {"timeout": 60, "tiles": None, **expected})
        desk.settled()
        if option:
            desk.fill(option, f"default: {option.default}" if option.type == "BOOL" else "")
    assert desk.faults == []


def test_the_server_names_an_option_out_of_range(desk):
    """An option takes effect, a value out of range is the server's sentence, and no number is the page's."""
    desk.upload(EXAMPLE)
    desk.page.get_by_text("Options", exact=True).click()
    for keyword, value, shown in (
        ("max_new_tokens", "3", "cut off at the token limit"),
        ("num_beams", "17", "NUM_BEAMS must be between 1 and 16, not 17"),
        ("num_beams", "many", "NUM_BEAMS must be a whole number, not 'many'"),
    ):
        desk.fill(next(option for option in OPTIONS if option.keyword == keyword), value)
        desk.button("Run").click()
        desk.answer().get_by_text(shown).wait_for()
        desk.button("Run").wait_for()
    assert desk.faults == []


def test_an_answer_grows_on_the_page(recorded):
    """With the checkbox, a growing answer is shown before the complete one, and the search has one beam."""
    recorder, desk = recorded
    desk.upload(EXAMPLE)
    desk.choose("caption")
    desk.page.get_by_text("Options", exact=True).click()
    desk.page.get_by_label("Show the answer while it is generated").check()
    desk.button("Run").click()
    desk.answer().get_by_text("generating").wait_for()
    assert desk.answer().locator(".words").inner_text() == "words"
    assert desk.answer().get_by_role("progressbar").is_visible() and not desk.button("Run").is_visible()
    recorder.released.set()
    desk.answer().get_by_text("Download JSON").wait_for()
    desk.button("Run").wait_for()
    assert desk.answer().get_by_text("generating").count() == 0
    assert recorder.requests.get(timeout=1)[2]["num_beams"] is None
    assert desk.faults == []


def test_nothing_found_is_said_on_the_page(recorded):
    _, desk = recorded
    desk.upload(EXAMPLE)
    for task in ("od", "ocr"):
        desk.choose(task)
        desk.button("Run").click()
        desk.page.locator("h3", has_text=f"({task})").wait_for()
        desk.answer().get_by_text("Nothing found.").wait_for()
        desk.button("Run").wait_for()
    assert desk.faults == []


def test_an_example_replaces_an_own_image_only_if_agreed(desk):
    """The example's own image is replaced without a question."""
    questions, agree = [], [False]
    desk.page.on(
        "dialog", lambda dialog: (questions.append(dialog.message), dialog.accept() if agree[0] else dialog.dismiss())
    )
    desk.button("Describe").click()
    desk.settled()
    desk.button("Find objects").click()
    desk.page.locator("h3", has_text="(od)").wait_for()
    desk.settled()
    assert questions == []
    desk.clear()
    desk.upload(EXAMPLE)
    own = desk.page.locator("#preview img").get_attribute("src")
    for agreed in (False, True):
        agree[0] = agreed
        with desk.page.expect_event("dialog"):
            desk.button("Read text").click()
        if agreed:
            desk.page.locator("h3", has_text="(ocr_with_region)").wait_for()
        else:
            desk.page.wait_for_timeout(1000)
            assert desk.page.locator("h3", has_text="(ocr_with_region)").count() == 0
    desk.settled()
    assert questions == ["Replace your image with the example's?"] * 2 and own
    assert desk.faults == []


def test_a_region_is_drawn_with_the_mouse(desk):
    """It is on the image before anything is asked; what is typed is drawn too."""
    desk.upload(EXAMPLE)
    desk.choose("region_to_category")
    frame = desk.frame()

    def at(x, y):
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    desk.page.mouse.move(*at(0.63, 0.42))
    desk.page.mouse.down()
    desk.page.mouse.move(*at(0.36, 0.11), steps=3)
    desk.page.mouse.up()
    desk.page.wait_for_function("document.querySelector('#region textarea, #region input').value")
    assert [round(int(pixel) / 768, 2) for pixel in desk.region.split(",")] == [0.36, 0.11, 0.63, 0.42]
    drawn = desk.page.locator("#preview .box").bounding_box()
    assert abs(drawn["x"] - at(0.36, 0)[0]) < 2 and abs(drawn["width"] - 0.27 * frame["width"]) < 3
    desk.button("Run").click()
    desk.settled()
    assert desk.answer().locator(".words").inner_text() == "star"
    desk.page.locator("#region textarea, #region input").fill("0,0,384,384")
    half = f"Math.abs(document.querySelector('#preview .box').offsetWidth - {frame['width'] / 2}) < 3"
    desk.page.wait_for_function(half)


def test_errors_are_read_on_the_page(desk, tmp_path):
    """First without an image, then with one that is none."""
    desk.button("Run").click()
    desk.answer().get_by_text("choose an image first").wait_for()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nonsense")
    desk.page.locator("#image input[type=file]").set_input_files(broken)
    desk.page.locator("#image img").wait_for(state="attached")
    desk.button("Run").click()
    desk.answer().get_by_text("the image is damaged or not in a format that can be read").wait_for()


def test_a_phone_draws_by_finger_on_a_turned_photograph(phone, tmp_path):
    """Coordinates are those of the image as displayed; the page fits the screen; the answer is in view."""
    photograph = tmp_path / "my phone's #1 image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    upright = Image.open(EXAMPLE).crop((0, 0, 768, 600))
    upright.transpose(Image.Transpose.ROTATE_90).save(photograph, exif=exif)
    phone.upload(photograph)
    phone.choose("region_to_category")
    frame = phone.frame()
    assert round(frame["width"] / frame["height"], 2) == 1.28
    finger = phone.page.context.new_cdp_session(phone.page)
    for kind, x, y in (
        ("touchStart", 0.35, 0.10),
        ("touchMove", 0.5, 0.3),
        ("touchMove", 0.64, 0.53),
        ("touchEnd", 0, 0),
    ):
        point = {"x": frame["x"] + x * frame["width"], "y": frame["y"] + y * frame["height"]}
        touched = {"type": kind, "touchPoints": [] if kind == "touchEnd" else [point]}
        finger.send("Input.dispatchTouchEvent", touched)
    phone.page.wait_for_function("document.querySelector('#region textarea, #region input').value")
    phone.button("Run").click()
    phone.settled()
    assert phone.answer().locator(".words").inner_text() == "star"
    overlay = phone.answer().locator("img").bounding_box()
    assert round(overlay["width"] / overlay["height"], 2) == 1.28
    assert phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.page.wait_for_function("document.querySelector('#answer-0').getBoundingClientRect().top < innerHeight")
