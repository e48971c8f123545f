"""Share a web page in front of the running server, and a browser to visit it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 30_000  # milliseconds that a slow machine may take for what usually is quick


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
        # Gradio loads the code of each kind of component only when it is needed, so they appear one after the other.
        for part in (self.button("Run"), page.locator("#answers p"), page.locator("#image input[type=file]")):
            part.wait_for(state="attached")
        self.button("Run").wait_for()

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def answer(self, place=0):
        return self.page.locator(f"#answer-{place}")

    def settled(self):
        """Wait for the end of the run."""
        self.page.get_by_text("tokens/s").first.wait_for()
        self.button("Run").wait_for()

    def upload(self, path):
        self.page.locator("#image input[type=file]").set_input_files(path)
        self.button("Another image").wait_for()

    def clear(self):
        """Remove the image."""
        self.button("Another image").click()
        self.button("Another image").wait_for(state="hidden")

    def choose(self, task):
        self.page.get_by_label("Task").click()
        self.page.get_by_role("option", name=f"({task})").click()

    def fill(self, option, value):
        field = self.page.locator(f"#{option.keyword.replace('_', '-')}").locator("input, textarea").first
        if option.type == "BOOL":
            field.click()
            self.page.get_by_role("option", name=value, exact=True).click()
        else:
            field.fill(value)

    @property
    def region(self):
        return self.page.locator("#region textarea, #region input").input_value()

    def frame(self):
        """Return where the image to draw on is, once it is there."""
        image = self.page.locator("#preview .drawable img")
        image.wait_for()
        self.page.wait_for_function("document.querySelector('#preview img').naturalWidth > 0")
        image.scroll_into_view_if_needed()
        return image.bounding_box()


@pytest.fixture
def visit(chromium):
    """Return a function that opens a page on a large screen."""
    pages = []

    def opened(url, **options):
        pages.append(chromium[0].new_page(viewport={"width": 1280, "height": 900}, **options))
        return Visit(pages[-1], url)

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def desk(visit, page_url):
    return visit(page_url)


@pytest.fixture
def phone(chromium, page_url):
    browser, pixel = chromium
    context = browser.new_context(**pixel)
    yield Visit(context.new_page(), page_url)
    context.close()
