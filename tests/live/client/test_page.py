"""The web page against a running server: its questions as functions, and all of it in a real browser."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from PIL import Image

from florence2.contract import OPTIONS
from florence2.tasks import TASKS
from florence2_client import Client
from florence2_client.page import requests
from florence2_client.page.layout import EXAMPLE, EXAMPLES
from florence2_client.page.requests import ask
from florence2_client.page.serving import served_page
from florence2_client.request import Options

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).parents[3]
SECONDS = 30_000  # milliseconds that a slow machine may take for what usually is quick


@pytest.fixture(scope="module")
def client(server):
    with Client(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def page_url(server):
    """`florence2 ui` as people start it, which must end at SIGTERM without an error."""
    command = [str(Path(sys.executable).with_name("florence2")), "ui", "--url", server.grpc_url, "--port", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = running.stdout.readline()
    assert line.startswith("The page is at http://127.0.0.1:"), running.communicate()[1]
    yield line.split()[4]
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 0
    assert "Traceback" not in running.stderr.read()


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser, driver.devices["Pixel 7"]
        browser.close()


class Visit:
    """The page as a visitor has it open, and every address that it asked for."""

    def __init__(self, page, url):
        self.page, self.addresses, self.faults = page, [], []
        page.set_default_timeout(SECONDS)
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto(url, wait_until="commit")
        self.button("Run").wait_for()

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def answer(self, place=0):
        return self.page.locator(f"#answer-{place}")

    def settled(self):
        """Waits for the end of the run."""
        self.page.get_by_text("tokens/s").first.wait_for()
        self.button("Run").wait_for()

    def upload(self, path):
        self.page.locator("#image input[type=file]").set_input_files(path)
        self.page.locator("#image img").wait_for()

    def choose(self, task):
        self.page.get_by_label("Task").click()
        self.page.get_by_role("option", name=f"{task} ·").click()

    @property
    def region(self):
        return self.page.locator("#region textarea, #region input").input_value()

    def frame(self):
        """Where the image to draw on is, once it is there."""
        image = self.page.locator("#picker img")
        image.wait_for()
        self.page.wait_for_function("document.querySelector('#picker img').naturalWidth > 0")
        image.scroll_into_view_if_needed()
        return image.bounding_box()


@pytest.fixture
def desk(chromium, page_url):
    page = chromium[0].new_page(viewport={"width": 1280, "height": 900})
    yield Visit(page, page_url)
    page.close()


@pytest.fixture
def phone(chromium, page_url):
    browser, pixel = chromium
    context = browser.new_context(**pixel)
    yield Visit(context.new_page(), page_url)
    context.close()


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
            scores = [answer.pop("scores") for answer in answers]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert answers[0] == answers[1]
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
        "there is no task 'captoin'; did you mean caption or detailed_caption?",
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


class Held:
    """A client whose answers are held back until `released`."""

    def __init__(self, client: Client) -> None:
        self.client, self.released = client, threading.Event()

    def run(self, *question, **options):
        assert self.released.wait(60)
        return self.client.run(*question, **options)


def test_stop_ends_the_waiting(client, chromium):
    """The button gives the form back at once; an answer that comes afterwards is not shown, and the next one is."""
    held = Held(client)
    with served_page(held, "a slow server", 60, "127.0.0.1", 0) as url:
        desk = Visit(chromium[0].new_page(), url)
        desk.upload(EXAMPLE)
        desk.button("Run").click()
        desk.button("Stop").click()
        desk.button("Run").wait_for()
        assert not desk.button("Stop").is_visible()
        held.released.set()
        desk.page.wait_for_timeout(500)
        assert desk.page.get_by_text("tokens/s").count() == 0
        desk.button("Run").click()
        desk.settled()
        desk.page.close()
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
    desk.answer(1).get_by_text("JSON").click()
    desk.answer(1).locator("pre", has_text="bboxes").wait_for()
    own = desk.page.url
    assert [address for address in desk.addresses if not address.startswith((own, "data:", "blob:"))] == []
    assert desk.faults == []


OPTION_VALUES = {
    "max_new_tokens": "3", "num_beams": "1", "no_repeat_ngram_size": "0", "length_penalty": "-1.5",
    "early_stopping": "no", "min_new_tokens": "2", "repetition_penalty": "1.25",
}  # fmt: skip


def test_every_option_is_on_the_page(desk):
    """Opening the options changes nothing; what is filled in reaches the server, which names a value out of range."""
    assert set(OPTION_VALUES) == {option.keyword for option in OPTIONS}
    desk.upload(EXAMPLE)
    desk.page.get_by_text("Options", exact=True).click()
    desk.button("Run").click()
    desk.settled()
    assert desk.page.get_by_text("cut off at the token limit").count() == 0
    for keyword, value in OPTION_VALUES.items():
        field = desk.page.locator(f"#{keyword.replace('_', '-')}").locator("input, textarea").first
        if keyword == "early_stopping":
            field.click()
            desk.page.get_by_role("option", name=value, exact=True).click()
        else:
            field.fill(value)
    desk.button("Run").click()
    desk.answer().get_by_text("cut off at the token limit").wait_for()
    beams = desk.page.locator("#num-beams").locator("input, textarea")
    for value, problem in ("17", "must be between 1 and 16, not 17"), ("many", "must be a whole number, not 'many'"):
        desk.button("Run").wait_for()
        beams.fill(value)
        desk.button("Run").click()
        desk.answer().get_by_text(f"NUM_BEAMS {problem}").wait_for()
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
    drawn = desk.page.locator("#picker .box").bounding_box()
    assert abs(drawn["x"] - at(0.36, 0)[0]) < 2 and abs(drawn["width"] - 0.27 * frame["width"]) < 3
    desk.button("Run").click()
    desk.settled()
    assert desk.answer().locator(".words").inner_text() == "star"
    desk.page.locator("#region textarea, #region input").fill("0,0,384,384")
    half = f"Math.abs(document.querySelector('#picker .box').offsetWidth - {frame['width'] / 2}) < 3"
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
