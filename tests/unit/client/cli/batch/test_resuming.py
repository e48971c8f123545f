"""What a second run of `florence2 batch` sends again, and what it keeps of the first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from florence2.errors import ConnectionFailed, InvalidRequest
from florence2_client.journal import Journal
from tests.unit.client.cli.batch.runs import ALL, batch, keys, lines


def test_a_second_run_sends_only_what_is_missing(server, folder):
    """If nothing is missing, there is not even a probe; if a task is added, its requests are sent."""
    batch("--tasks", "caption")
    asked = len(server.asked)
    assert batch("--tasks", "caption") == 0
    assert len(server.asked) == asked
    assert batch("--tasks", "caption,od") == 0
    assert keys() == ALL
    assert len(server.images_asked()) == 10


@pytest.mark.parametrize("half", [b"", b'{"image": "images/0.p', b'{"image": "' + b"\xc3" * 70_000])
def test_half_a_line_is_cut_off_and_asked_again(server, folder, half):
    """Whatever a kill left behind the last line end is dropped."""
    batch("--tasks", "caption")
    whole = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(whole[:3]) + half)
    assert batch("--tasks", "caption") == 0
    assert keys() == [key for key in ALL if key[1] == "<CAPTION>"]
    assert Path("out.jsonl").read_bytes().splitlines(keepends=True)[:3] == whole[:3]


@pytest.mark.parametrize("content", ['{"some": "thing"}\n', "a line without an end", '{"image": "x.png"}\n{"image'])
def test_foreign_output_file_is_not_touched(server, folder, capsys, content):
    """A file that is no journal is named, and not a byte of it changed."""
    Path("out.jsonl").write_text(content)
    assert batch("--tasks", "caption") == 2
    assert "not from a batch run" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == content


def test_two_runs_do_not_share_a_file(server, folder, capsys):
    """The second is refused, and told why."""
    with Journal(Path("out.jsonl")):
        assert batch("--tasks", "caption") == 2
    assert "another run is writing to out.jsonl" in capsys.readouterr().err


def test_the_summary_is_about_this_run(server, folder, capsys):
    """Errors of other images and tasks in the same file do not count."""
    Path("images/1.png").write_bytes(b"bad")
    assert batch("--tasks", "caption") == 2
    capsys.readouterr()
    assert batch("--tasks", "od", sources=["images/0.png", "images/2.png"]) == 0
    assert capsys.readouterr().err == "out.jsonl: 2 of 2 done\n"


def test_a_broken_file_is_reported_once(server, folder, capsys):
    """It has one line for all tasks, also when a task is added."""
    Path("images/1.png").write_bytes(b"bad")
    assert batch("--tasks", "caption,od") == 2
    error = capsys.readouterr().err
    assert error.count("images/1.png") == 1 and "10 of 10 done, 1 with an error" in error
    assert batch("--tasks", "caption,od,<DocVQA>What?") == 2
    assert "15 of 15 done, 1 with an error; --retry-errors tries again" in capsys.readouterr().err
    assert [line["code"] for line in lines() if "error" in line] == ["INVALID_IMAGE"]


def test_errors_are_retried_on_demand(server, folder, capsys):
    """A line that was an error is replaced by the answer."""
    Path("images/1.png").write_bytes(b"bad")
    batch("--tasks", "caption,od")
    asked = len(server.asked)
    assert batch("--tasks", "caption,od") == 2
    assert len(server.asked) == asked
    server.reads_all = True
    assert batch("--tasks", "caption,od", "--retry-errors") == 0
    assert keys() == ALL and not any("error" in line for line in lines())


def test_a_missing_file_is_sent_once_it_is_there(server, folder, capsys):
    """Until then the exit code is 2."""
    Path("list.txt").write_text("images/0.png\nimages/9.png\n")
    assert batch("--tasks", "caption,od", sources=["list.txt"]) == 2
    error = capsys.readouterr().err
    assert error.count("there is no file images/9.png") == 1 and "2 of 4 done, 1 missing" in error
    os.rename("images/1.png", "images/9.png")
    assert batch("--tasks", "caption,od", sources=["list.txt"]) == 0
    assert len(lines()) == 4
    os.remove("images/9.png")
    assert batch("--tasks", "caption,od", sources=["list.txt"]) == 0, "an answer outlives its image"


def test_a_changed_image_is_sent_again(server, folder, capsys):
    """This is announced, and its old answers and errors are replaced."""
    Path("images/1.png").write_bytes(b"bad")
    assert batch("--tasks", "caption,od") == 2
    capsys.readouterr()
    for name in ("0", "1"):
        Image.new("RGB", (9, 9), "red").save(f"images/{name}.png")
    asked = len(server.images_asked())
    assert batch("--tasks", "caption,od") == 0
    assert "2 images changed since the last run and will be sent again" in capsys.readouterr().err
    assert len(server.images_asked()) == asked + 4
    assert keys() == ALL


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--num-beams", "1"], "--num-beams not given instead of 1"),
        (["--max-side", "500"], "--max-side not given instead of 500"),
        (["--model", "mine"], "--model mine instead of mine_ensemble"),
    ],
)
def test_a_run_with_other_options_is_refused(server, folder, capsys, arguments, difference):
    """The difference is named, and the answers are kept. New tasks may have other options. Timeouts may differ."""
    batch("--tasks", "caption", "--model", "mine")
    before = Path("out.jsonl").read_bytes()
    again = ["--model", "mine", *arguments] if arguments[0] != "--model" else ["--model", "mine_ensemble"]
    assert batch("--tasks", "caption", *again) == 2
    assert difference in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == before
    assert batch("--tasks", "od", *again) == 0
    assert batch("--tasks", "caption", "--model", "mine", "--timeout", "5") == 0


def test_tiles_are_an_option_that_answers_depend_on(server, folder, capsys):
    """Each tile is a request, and tasks that take none are refused before anything is sent."""
    assert batch("--tasks", "od", "--tiles", "2x1") == 0
    assert len(server.images_asked()) >= 3 * len(lines())
    assert lines()[0]["request"]["options"] == {"tiles": "2x1"}
    assert batch("--tasks", "od") == 2
    assert "--tiles 2x1 instead of not given" in capsys.readouterr().err
    assert batch("--tasks", "caption", "--tiles", "auto") == 2
    assert "<CAPTION> describes the whole image" in capsys.readouterr().err


def test_answers_of_early_versions_are_kept(server, folder):
    """Their lines have no field `request`, so the options of the next run do not matter."""
    batch("--tasks", "caption")
    kept = [{name: value for name, value in line.items() if name != "request"} for line in lines()]
    Path("out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    asked = len(server.asked)
    assert batch("--tasks", "caption", "--num-beams", "1") == 0
    assert len(server.asked) == asked


def serve(server, description):
    async def describe(model, timeout):
        if isinstance(description, Exception):
            raise description
        return description

    server.describe = describe


WEIGHTS = {"weights_sha256": "3f" * 32, "language_precision": "int8", "exported": "2026-11-28T12:00:00Z"}


@pytest.mark.parametrize(
    ("description", "difference"),
    [
        (WEIGHTS | {"weights_sha256": "a0" * 32}, "weights_sha256 3f3f3f3f3f3f instead of a0a0a0a0a0a0"),
        (WEIGHTS | {"language_precision": "int4"}, "language_precision int8 instead of int4"),
        (WEIGHTS | {"calibrated": "od"}, "calibrated not given instead of od"),
    ],
)
def test_answers_of_another_model_of_the_same_name_are_not_mixed(server, folder, capsys, description, difference):
    """What was answered stays, and other tasks may be answered by another model."""
    serve(server, WEIGHTS)
    batch("--tasks", "caption", sources=["images/0.png"])
    before = Path("out.jsonl").read_bytes()
    serve(server, description)
    assert batch("--tasks", "caption") == 2
    assert f"out.jsonl has answers of another model, with {difference}; choose" in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == before and len(server.images_asked()) == 1
    assert batch("--tasks", "od") == 0
    assert {line["request"]["served"]["weights_sha256"][:2] for line in lines()} <= {"3f", "a0"}


@pytest.mark.parametrize(
    "description",
    [WEIGHTS | {"exported": "2027-01-01T12:00:00Z"}, {}, {"other": "x"}, InvalidRequest("it is hidden"),
     ConnectionFailed("no answer"), WEIGHTS | {"image_size": "768x768"}],  # which early exports did not write
    ids=str,
)  # fmt: skip
def test_a_batch_goes_on_with_the_same_model_or_if_the_server_does_not_tell(server, folder, description):
    serve(server, WEIGHTS)
    batch("--tasks", "caption", sources=["images/0.png"])
    serve(server, description)
    assert batch("--tasks", "caption") == 0
    assert len(lines()) == 5


@pytest.mark.parametrize(
    "change",
    [{"image": ["x"]}, {"task": {}}, {"prompt_text": 7}, {"request": ["x"]}, {"request": {"model": "m"}},
     {"request": {"model": "m", "options": "x", "file": None}},
     {"request": {"model": "m", "options": {}, "file": None, "served": "x"}}],
    ids=str,
)  # fmt: skip
def test_a_line_of_another_form_is_no_line_of_a_batch(server, folder, capsys, change):
    batch("--tasks", "caption", sources=["images/0.png"])
    Path("out.jsonl").write_text(json.dumps(lines()[0] | change) + "\n")
    assert batch("--tasks", "caption") == 2
    assert capsys.readouterr().err.endswith("florence2: line 1 of out.jsonl is not from a batch run\n")
