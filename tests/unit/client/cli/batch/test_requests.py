"""What `florence2 batch` sends for each image, what it writes, and which mistakes it names before."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from florence2.errors import InvalidRequest
from florence2_client.journal import entries
from tests.unit.client.cli.batch.runs import ALL, ANSWERS, batch, keys, lines


def test_every_image_is_sent_with_every_task(server, folder, capsys):
    """A JSON line each, as `Result.to_dict` with the image's path; the summary goes to standard error."""
    assert batch("--tasks", "caption,od") == 0
    assert keys() == ALL
    [line] = [line for line in lines() if (line["image"], line["task"]) == ("images/3.png", "<OD>")]
    assert line["answer"] == ANSWERS["<OD>"]
    assert line["image_size"] == [40, 50]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "out.jsonl: 10 of 10 done"


def test_answers_are_printed(server, folder, capsys):
    """`--out -` leaves no file, and the other formats are made from what was printed."""
    assert batch("--tasks", "caption,od", "--coco", "coco.json", out="-") == 0
    captured = capsys.readouterr()
    assert sorted((line["image"], line["task"]) for line in map(json.loads, captured.out.splitlines())) == ALL
    assert captured.err == "standard output: 10 of 10 done\n"
    assert len(json.loads(Path("coco.json").read_text())["images"]) == 5
    assert not Path("-").exists()


def test_bad_files_are_recorded_and_counted(server, folder, capsys):
    """A damaged and an empty file get a line with the error, the others their answers; exit code 2, then and later."""
    Path("images/1.png").write_bytes(b"bad")
    Path("images/2.png").write_bytes(b"")
    assert batch("--tasks", "caption") == 2
    errors = {line["image"]: line["error"] for line in lines() if "error" in line}
    assert errors == {
        "images/1.png": "the image is damaged",
        "images/2.png": "the image is empty (0 bytes)",
    }
    assert len(lines()) == 5
    assert "5 of 5 done, 2 with an error" in capsys.readouterr().err
    assert batch("--tasks", "caption") == 2
    assert len(lines()) == 5


def test_file_names_of_any_bytes_are_kept(server, folder):
    """Names that are not UTF-8 survive JSON."""
    name = os.fsdecode(b"images/caf\xe9.png")
    os.rename("images/0.png", name)
    assert batch("--tasks", "caption", "--csv", "words.csv", "--coco", "coco.json", "--yolo", "labels") == 0
    assert name in {entry.key[0] for entry in entries(Path("out.jsonl"))}
    assert batch("--tasks", "caption") == 0
    assert len(lines()) == 5


def test_each_page_is_an_image(server, folder):
    """It has answers, drawings and label files of its own, and a resumed run sends only missing pages."""
    pytest.importorskip("pypdfium2")
    sources = ["scan.pdf", "scan2.tif"]
    for name in sources:
        first, *rest = [Image.new("RGB", (40, 50), color) for color in ("red", "green", "blue")]
        first.save(name, save_all=True, append_images=rest)
    more = ["--draw", "drawn", "--yolo", "labels"]
    assert batch("--tasks", "caption,od", *more, sources=sources) == 0
    names = {f"{file}#{number}" for file in sources for number in (1, 2, 3)}
    assert {line["image"] for line in lines()} == names and len(lines()) == 12
    assert len(list(Path("drawn").glob("*.jpg"))) == 12 and len(list(Path("labels").glob("scan*.txt"))) == 6
    kept = Path("out.jsonl").read_text().splitlines(keepends=True)
    Path("out.jsonl").write_text("".join(line for line in kept if "#2" not in line))
    asked = len(server.images_asked())
    assert batch("--tasks", "caption,od", *more, sources=sources) == 0
    assert len(server.images_asked()) == asked + 4


def test_text_goes_to_the_tasks_that_take_one(server, folder):
    """One text for all of them; a text behind the token is that task's own; prompts of fine-tunes take none."""
    tasks = "caption,region_to_segmentation,<OPEN_VOCABULARY_DETECTION>a dog,<DocVQA>What?"
    assert batch("--tasks", tasks, "--text", "1,2,30,40", sources=["images/0.png"]) == 0
    asked = {asked["TASK"]: asked.get("TEXT") for asked in server.images_asked()}
    assert asked == {
        b"<CAPTION>": None, b"<REGION_TO_SEGMENTATION>": b"1,2,30,40", b"<OPEN_VOCABULARY_DETECTION>": b"a dog",
        b"<DocVQA>What?": None,
    }  # fmt: skip
    assert {line.get("prompt_text") for line in lines()} == {None, "1,2,30,40", "a dog"}
    assert batch("--tasks", tasks, "--text", "1,2,30,40", sources=["images/0.png"]) == 0
    assert len(lines()) == 4


def test_several_texts_go_to_each_task_that_takes_one(server, folder):
    """Each is an answer of its own."""
    texts = ["--text", "a dog", "--text", "a red car"]
    assert batch("--tasks", "od,open_vocabulary_detection", *texts, sources=["images/0.png"]) == 0
    asked = sorted((asked["TASK"], asked.get("TEXT", b"")) for asked in server.images_asked())
    found = b"<OPEN_VOCABULARY_DETECTION>"
    assert asked == [(b"<OD>", b""), (found, b"a dog"), (found, b"a red car")]
    assert [line.get("prompt_text") for line in lines()].count("a red car") == 1
    assert batch("--tasks", "od,open_vocabulary_detection", *texts, sources=["images/0.png"]) == 0
    assert len(lines()) == 3


def test_mistake_in_the_request_is_not_blamed_on_the_images(server, folder, capsys):
    """A probe finds it before anything is written."""

    def mistake(count):
        raise InvalidRequest("NUM_BEAMS must be at most 16")

    server.fail = mistake
    assert batch("--tasks", "caption", "--num-beams", "99") == 2
    assert Path("out.jsonl").read_text() == ""
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tasks", "captoin"], "did you mean caption"),
        (["--tasks", ","], "names no task"),
        (["--tasks", "region_to_segmentation"], "takes a text"),
        (["--tasks", "caption", "--text", "x"], "none of the tasks takes the text 'x'"),
        (["--tasks", "caption,open_vocabulary_detection,region_to_ocr", "--text", "x"], "<REGION_TO_OCR> takes a text"),
        (["--tasks", "caption", "--concurrency", "0"], "concurrency must be at least 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_before_any_image_is_sent(server, folder, capsys, arguments, sentence):
    """The exit code is 2."""
    assert batch(*arguments) == 2
    assert sentence in capsys.readouterr().err
    assert server.images_asked() == []


@pytest.mark.parametrize("text", ["1,2,3", "5,5,1,1", "a,b,c,d", "<loc_1><loc_2>", " ", "1,2,3,4e999"])
def test_a_mistyped_region_is_found_before_the_first_request(server, folder, capsys, text):
    """Nothing is sent or written."""
    assert batch("--tasks", "region_to_segmentation", "--text", text) == 2
    assert server.asked == [] and not Path("out.jsonl").exists()
    assert "<REGION_TO_SEGMENTATION> takes a region" in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(server, folder, capsys):
    """In a folder or in a list, with any suffix."""
    for name in ("pipe.png", "pipe.tif", "pipe"):
        os.mkfifo(f"images/{name}")
    Path("list.txt").write_text("images/pipe\nimages/0.png\n")
    assert batch("--tasks", "caption", sources=["images", "list.txt"]) == 2
    error = capsys.readouterr().err
    for name in ("pipe.png", "pipe.tif", "pipe"):
        assert f"images/{name} cannot be read: it is not a regular file\n" in error
    assert len(lines()) == 5 and "3 missing or unreadable" in error


def test_an_image_that_is_deleted_before_it_is_drawn_costs_only_itself(server, folder, capsys):
    """It is not final, as a missing file is not."""

    def steal(count):
        if count == 4:  # the first request was the probe
            os.rename("images/2.png", "stolen.png")

    server.fail = steal
    assert batch("--tasks", "caption", "--draw", "drawn", "--concurrency", "1") == 2
    error = capsys.readouterr().err
    assert error.count("there is no file images/2.png") == 1 and "4 of 5 done, 1 missing or unreadable" in error
    assert len(lines()) == len(list(Path("drawn/images").iterdir())) == 4
    os.rename("stolen.png", "images/2.png")
    assert batch("--tasks", "caption", "--draw", "drawn") == 0
    assert len(lines()) == 5
