"""`florence2 run` with several tasks and texts, its drawings and masks, against a fake transport."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.errors import ConnectionFailed, InternalError, InvalidPrompt
from florence2_client import cli
from florence2_client.cli.arguments import task_names
from tests.unit.client.cli.fake_server import FakeServer

FIND = "open_vocabulary_detection"


class Server(FakeServer):
    """Also refuses requests by their text or task."""

    def __init__(self):
        super().__init__()
        self.refused = {}

    def infer(self, model, tensors, timeout):
        task, text = (tensors[name][0].decode() if name in tensors else None for name in ("TASK", "TEXT"))
        if error := self.refused.get(text) or self.refused.get(task):
            self.asked.append((model, {}, timeout))
            raise error
        return super().infer(model, tensors, timeout)


@pytest.fixture
def server(monkeypatch):
    fake = Server()
    monkeypatch.setattr("florence2_client.client.open_transport", fake.open)
    monkeypatch.setattr("florence2_client.cli.run.DEFAULT_RETRY_SECONDS", 0)
    return fake


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with an image."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "gray").save("image.png")
    return tmp_path


def run(*arguments):
    return cli.main(["run", "image.png", *arguments])


def test_several_tasks_are_printed_in_order(server, folder, capsys):
    """Each under its name, with a line about all of them at the end."""
    assert run("--task", "od,caption", "--no-json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "od:" and lines[4:6] == ["", "7 tokens, stop, image 40x30"]
    assert lines[7:11] == ["caption:", "a café", "", "7 tokens, stop, image 40x30"]
    assert lines[-1].startswith("2 of 2 requests answered, ") and lines[-1].endswith(" ms")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "od,caption"],
        ["--tasks", "od, caption"],
        ["--task", "od", "--task", "caption"],
        ["--task", "<od>,<CAPTION>"],
    ],
)
def test_json_has_a_line_for_each(server, folder, capsys, arguments):
    assert run(*arguments) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["task"] for line in captured.out.splitlines()] == ["<OD>", "<CAPTION>"]
    assert captured.err == ""


def test_each_text_goes_to_the_tasks_that_take_it(server, folder, capsys):
    """A region that begins with a minus sign too, wherever it stands."""
    texts = ["--text", "cat", "--text", "-1,2,3,4", "--text", "a hat", "--text", "-5,0,9,9"]
    assert run("--task", f"{FIND},region_to_category,caption", *texts) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["task"], line.get("prompt_text")) for line in lines] == [
        ("<OPEN_VOCABULARY_DETECTION>", "cat"), ("<OPEN_VOCABULARY_DETECTION>", "a hat"),
        ("<REGION_TO_CATEGORY>", "-1,2,3,4"), ("<REGION_TO_CATEGORY>", "-5,0,9,9"), ("<CAPTION>", None),
    ]  # fmt: skip


@pytest.mark.parametrize("error", [InvalidPrompt("too bad"), InternalError("too bad"), ConnectionFailed("too bad")])
def test_one_failure_leaves_the_other_answers(server, folder, capsys, error):
    """Its sentence says which one it was, and its exit code is the command's."""
    server.refused = {"a hat": error}
    for json_or_not in ("--json", "--no-json"):
        assert run("--task", f"caption,{FIND}", "--text", "a hat", "--text", "cat", json_or_not) == error.exit_code
        captured = capsys.readouterr()
        assert captured.err == f"florence2: {FIND}: a hat: too bad\n"
        if json_or_not == "--json":
            lines = [json.loads(line) for line in captured.out.splitlines()]
            assert [line.get("code") for line in lines] == [None, error.code, None]
            assert lines[1]["error"] == "too bad" and lines[1]["prompt_text"] == "a hat"
        else:
            assert "a café" in captured.out and f"{FIND}: cat:" in captured.out and "2 of 3 requests" in captured.out


def test_the_first_failure_is_the_exit_code(server, folder):
    server.refused = {"a hat": ConnectionFailed("away"), "cat": InvalidPrompt("no cats")}
    assert run("--task", FIND, "--text", "a hat", "--text", "cat") == 3
    assert run("--task", FIND, "--text", "cat", "--text", "a hat") == 2


def test_a_common_failure_is_one_sentence(server, folder, capsys):
    server.failure = ConnectionFailed("no answer from the server")
    assert run("--task", "od,caption,ocr", "--no-json") == 3
    assert capsys.readouterr().err == "florence2: no answer from the server\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "od,captoin"], "did you mean caption"),
        (["--task", "od,caption", "--text", "a dog"], "none of the tasks takes the text 'a dog'"),
        (["--task", f"caption,{FIND}"], "takes a phrase"),
        (["--task", f"{FIND},region_to_ocr", "--text", "a dog"], "<REGION_TO_OCR> takes a region"),
        (["--task", "region_to_ocr", "--text", "1,2,3,4", "--text", "1,2,3"], "the text is neither"),
        (["--task", "od,caption", "--stream"], "--stream prints one answer"),
        (["--task", "od", "--masks", "."], "give --masks a folder of its own"),
        (["--task", "od,caption", "--draw", "image.png"], None),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(server, folder, capsys, arguments, sentence):
    code = run(*arguments)
    if sentence:
        assert code == 2 and sentence in capsys.readouterr().err and not server.asked
    else:  # the files are image-od.png and image-caption.png
        assert code == 0 and Path("image-od.png").exists()


def test_no_drawing_replaces_the_image(server, folder, capsys):
    Path("image.png").rename("photo-od.png")
    assert cli.main(["run", "photo-od.png", "--task", "od,caption", "--draw", "photo.png"]) == 2
    assert "would overwrite the image itself" in capsys.readouterr().err


def test_a_task_has_one_drawing(server, folder):
    """All phrases of a task share it; several tasks have one each."""
    assert run("--task", FIND, "--text", "cat", "--text", "a hat", "--draw", "out.png") == 0
    assert run("--task", f"od,{FIND}", "--text", "cat", "--draw", "out.jpg") == 0
    assert sorted(path.name for path in folder.glob("out*")) == ["out-od.jpg", f"out-{FIND}.jpg", "out.png"]


def test_each_object_has_a_mask(server, folder, capsys):
    """Named by its label, black and white, in the image's size; the folder holds nothing that a batch would read."""
    assert (
        run("--task", f"od,{FIND},region_to_segmentation", "--text", "cat", "--text", "1,2,3,4", "--masks", "masks")
        == 0
    )
    names = sorted(path.name for path in Path("masks").glob("*.png"))
    assert names == ["cat-2.png", "cat.png", "dog.png", "object.png", "中文.png"]
    pixels = {name: np.asarray(Image.open(f"masks/{name}")) for name in names}
    assert all(mask.shape == (30, 40) and mask.dtype == np.bool_ for mask in pixels.values())
    assert pixels["dog.png"].sum() == pytest.approx(32.5 * 22, rel=0.05) and pixels["cat-2.png"][4, 28]
    assert Path("masks/.florence2-drawings").exists()
    assert run("--task", "caption", "--masks", "masks") == 0
    assert "nothing was located, so there is no mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "tasks"),
    [
        ("od", ["od"]),
        ("caption,od", ["caption", "od"]),
        ("caption, od,", ["caption", "od"]),
        ("region to ocr,more-detailed caption", ["region to ocr", "more-detailed caption"]),
        ("<OPEN_VOCABULARY_DETECTION>a dog,od", ["<OPEN_VOCABULARY_DETECTION>a dog", "od"]),
        ("<DocVQA>What is the date, and the sum?", ["<DocVQA>What is the date, and the sum?"]),
        ("What is this, and where?", ["What is this, and where?"]),
        ("<OPEN_VOCABULARY_DETECTION>a dog, a cat", ["<OPEN_VOCABULARY_DETECTION>a dog, a cat"]),
    ],
)
def test_commas_separate_tasks_and_not_words_of_a_prompt(given, tasks):
    assert task_names(given) == tasks


def test_tiles_are_sent_with_the_whole_image(server, folder, capsys):
    """The answers are one. A task that takes no tiles is refused before anything is sent."""
    assert run("--task", "od", "--tiles", "2x1") == 0
    assert len(server.asked) == 3
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert run("--task", "od,caption", "--tiles", "2x1") == 2
    assert "<CAPTION> describes the whole image" in capsys.readouterr().err
    assert len(server.asked) == 3
