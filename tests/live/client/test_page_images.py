"""What visitors of the web page see and take away: contrast, previews and downloads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from florence2_client.page.layout import EXAMPLE

CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")


def test_an_answer_is_copied_and_downloaded(desk, tmp_path):
    """Labels as text, one a line; the JSON; and the image in full size with the answer drawn on it."""
    desk.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    large = tmp_path / "my scene.png"
    Image.open(EXAMPLE).resize((2000, 2000)).save(large)
    desk.upload(large)
    desk.button("Run").click()
    desk.settled()
    labels = desk.answer().locator(".words").inner_text()
    assert "star" in labels.split("\n")
    desk.answer().get_by_role("button", name="Copy text").click()
    desk.answer().get_by_role("button", name="Copied").wait_for()
    assert desk.page.evaluate("navigator.clipboard.readText()") == labels
    files = []
    for link in ("Download image", "Download JSON"):
        with desk.page.expect_download() as download:
            desk.answer().get_by_text(link).click()
        assert download.value.suggested_filename.startswith("my-scene.od.")
        files.append(download.value.path())
    assert Image.open(files[0]).size == (2000, 2000)
    assert json.loads(files[1].read_text())["answer"]["labels"] == labels.split("\n")
    assert desk.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(visit, page_url, tmp_path, scheme):
    """Every text has a contrast of 4.5 : 1 with its background: at the start, in messages, answers and lists."""
    desk = visit(page_url, color_scheme=scheme)
    page, texts = desk.page, []

    def measure():
        for _ in range(20):
            page.wait_for_timeout(400)  # colors change slowly, more so on a busy machine
            measured = page.evaluate(CONTRAST)
            if not measured["low"]:
                break
        assert measured["low"] == []
        texts.append(measured["checked"])

    measure()
    desk.button("Run").click()
    desk.answer().get_by_role("alert").wait_for()
    desk.button("Run").wait_for()
    measure()
    desk.button("Four tasks side by side").click()
    desk.settled()
    desk.answer(3).get_by_text("Download JSON").wait_for()
    page.get_by_text("Options", exact=True).click()
    page.get_by_text("Show JSON").first.click()
    measure()
    page.get_by_label("Task").click()
    page.get_by_role("option").nth(3).hover()
    measure()
    page.keyboard.press("Escape")  # the list may cover what is clicked next
    desk.clear()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(65 << 20))
    page.locator("#image input[type=file]").set_input_files(large)
    page.get_by_text("exceed the maximum allowed size").wait_for()
    measure()
    assert texts[0] > 20 and texts[2] > 70


def test_contrast_is_measured(desk):
    """The script finds text that is hard to read, whether by its color, its opacity or that of a parent."""
    desk.page.evaluate(
        """() => document.querySelector("#answers").insertAdjacentHTML("beforeend",
        "<p style='color:#888;background:#fff'>gray</p><div style='opacity:.4'><b>faint</b></div>")"""
    )
    assert [line.split()[1] for line in desk.page.evaluate(CONTRAST)["low"]] == ["gray", "faint"]


@pytest.mark.parametrize(("name", "size"), [("scan.tif", (768, 768)), ("large.jpg", (12_000, 8_000))])
def test_images_that_browsers_cannot_show_have_a_preview(desk, tmp_path, name, size):
    """TIFF and 96 megapixels; coordinates are those of the image itself, and what is downloaded has its size."""
    path = tmp_path / name
    Image.open(EXAMPLE).resize(size).save(path)
    desk.upload(path)
    desk.choose("region_to_category")
    frame = desk.frame()
    shown = desk.page.evaluate("document.querySelector('#preview img').naturalWidth")
    assert shown == min(size[0], 1280)
    desk.page.mouse.move(frame["x"] + 0.36 * frame["width"], frame["y"] + 0.11 * frame["height"])
    desk.page.mouse.down()
    desk.page.mouse.move(frame["x"] + 0.63 * frame["width"], frame["y"] + 0.42 * frame["height"], steps=3)
    desk.page.mouse.up()
    desk.page.wait_for_function("document.querySelector('#region textarea, #region input').value")
    corners = [0.36 * size[0], 0.11 * size[1], 0.63 * size[0], 0.42 * size[1]]
    assert [float(pixel) for pixel in desk.region.split(",")] == pytest.approx(corners, abs=size[0] / 300)
    desk.button("Run").click()
    desk.settled()
    assert desk.answer().locator(".words").inner_text() == "star"
    with desk.page.expect_download() as download:
        desk.answer().get_by_text("Download image").click()
    assert Image.open(download.value.path()).size == size
    assert desk.faults == []


def test_a_file_without_a_preview_says_why(desk, tmp_path):
    """The sentence stands where the preview would be, and another image can be chosen."""
    broken = tmp_path / "photo.heic"
    broken.write_bytes(b"\0\0\0\x18ftypheic")
    desk.upload(broken)
    desk.page.locator("#preview").get_by_role("alert").get_by_text("No preview: ").wait_for()
    desk.clear()
    desk.upload(EXAMPLE)
    desk.page.locator("#preview img").wait_for()
    assert desk.page.locator("#preview").get_by_role("alert").count() == 0


@pytest.mark.parametrize("kind", ["", "image/heic"])
def test_a_dropped_file_of_a_type_that_the_browser_does_not_know_is_taken(desk, kind):
    """Browsers on most systems have no type for HEIC. The file is dropped until the page listens."""
    desk.page.wait_for_function(
        """kind => {
          if (document.querySelector("#preview [role=alert]")) return true;
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File(["no image"], "photo.heic", { type: kind }));
          const area = [...document.querySelectorAll("#image button")].find((button) => /Drop/.test(button.innerText));
          for (const name of ["dragenter", "dragover", "drop"])
            area?.dispatchEvent(new DragEvent(name, { bubbles: true, cancelable: true, dataTransfer }));
        }""",
        arg=kind,
        polling=1000,
    )
    assert desk.faults == []
