"""`florence2 batch` against a transport of the test's own: what is written, what is asked again, and what ends it."""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.errors import ConnectionFailed, InternalError, InvalidImage, InvalidRequest
from florence2_client import cli
from florence2_client.cli.journal import Journal, entries

ANSWERS = {
    "<CAPTION>": "a dog, sleeping",
    "<OD>": {"bboxes": [[10, 20, 30, 40]], "labels": ["dog"], "scores": [0.5]},
    "<REGION_TO_SEGMENTATION>": {"polygons": [[[0, 0, 10, 0, 10, 10]]], "labels": [""]},
    "<OPEN_VOCABULARY_DETECTION>": {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []},
    "<DocVQA>What?": "42",
}


class FakeServer:
    """Answers by task; `fail` may raise by the count of requests so far."""

    def __init__(self):
        self.asked, self.fail = [], lambda count: None

    async def infer(self, model, tensors, timeout):
        await asyncio.sleep(0)
        self.asked.append({name: tensor[0] for name, tensor in tensors.items()})
        if tensors["IMAGE"][0].startswith(b"bad"):
            raise InvalidImage("the image is damaged")
        self.fail(len(self.asked))
        task = tensors["TASK"][0].decode()
        return {
            "RESULT": np.array([json.dumps({task: ANSWERS[task]}).encode()], dtype=object),
            "GENERATED_TEXT": np.array([b"text"], dtype=object),
            "FINISH_REASON": np.array([b"stop"], dtype=object),
            "NUM_TOKENS": np.array([7], dtype=np.int32),
            "SEQUENCE_SCORE": np.array([-0.25], dtype=np.float32),
            "IMAGE_SIZE": np.array([40, 50], dtype=np.int32),
        }

    async def close(self):
        pass

    def images_asked(self):
        """Without the probes."""
        return [asked for asked in self.asked if b"\x00\x00\x00\x40\x00\x00\x00\x40" not in asked["IMAGE"][:32]]


@pytest.fixture
def server(monkeypatch):
    fake = FakeServer()
    monkeypatch.setattr("florence2_client.async_client.open_async_transport", lambda address: fake)
    return fake


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images/0.png to images/4.png."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in range(5):
        Image.new("RGB", (40, 50), (number, 0, 0)).save(f"images/{number}.png")
    return tmp_path


def batch(*arguments, sources=("images",), out="out.jsonl"):
    return cli.main(["batch", *sources, "--out", out, "--retry-for", "0", *arguments])


def lines(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def keys():
    return sorted((line["image"], line["task"]) for line in lines())


ALL = [(f"images/{number}.png", task) for number in range(5) for task in ("<CAPTION>", "<OD>")]


def test_every_image_is_asked_every_task(server, folder, capsys):
    """A JSON line each, as `Result.to_dict` with the image's path; the summary goes to standard error."""
    assert batch("--tasks", "caption,od") == 0
    assert keys() == ALL
    [line] = [line for line in lines() if (line["image"], line["task"]) == ("images/3.png", "<OD>")]
    assert line["answer"] == ANSWERS["<OD>"]
    assert line["image_size"] == [40, 50]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "out.jsonl: 10 of 10 done"


def test_second_run_asks_nothing_again(server, folder):
    """When all is done the server is not even asked whether it is there; more tasks and images are added."""
    batch("--tasks", "caption")
    asked = len(server.asked)
    assert batch("--tasks", "caption") == 0
    assert len(server.asked) == asked
    assert batch("--tasks", "caption,od") == 0
    assert keys() == ALL
    assert len(server.images_asked()) == 10


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
    """The second is told so."""
    with Journal(Path("out.jsonl")):
        assert batch("--tasks", "caption") == 2
    assert "another run is writing to out.jsonl" in capsys.readouterr().err


def test_server_that_goes_away_stops_the_run(server, folder, capsys):
    """When the retries end, the run ends with exit code 3; the next one does the rest."""

    def away(count):
        if count > 4:
            raise ConnectionFailed("no answer from there")

    server.fail = away
    assert batch("--tasks", "caption", "--concurrency", "1") == 3
    assert len(lines()) == 3  # the first request was the probe
    error = capsys.readouterr().err
    assert "3 of 5 done, 2 left; run the same command again to resume" in error
    assert error.splitlines()[-1] == "florence2: no answer from there"
    server.fail = lambda count: None
    assert batch("--tasks", "caption") == 0
    assert keys() == [key for key in ALL if key[1] == "<CAPTION>"]


def test_waiting_for_the_server_is_told(server, folder, capsys):
    """A pause while the server is away is explained, once and not for every request in flight."""

    def away(count):
        if 2 <= count <= 5:
            raise ConnectionFailed("no answer from there")

    server.fail = away
    assert batch("--tasks", "caption", "--patience", "20") == 0  # sic: the older name of --retry-for
    assert capsys.readouterr().err.count("no answer from there; retrying for up to 20 seconds") == 1
    assert len(lines()) == 5


def test_faults_of_the_server_are_left_for_the_next_run(server, folder, capsys):
    """One internal error costs one answer, which is not written down; exit code 1."""

    def fault(count):
        if count == 3:
            raise InternalError("ours")

    server.fail = fault
    assert batch("--tasks", "caption") == 1
    assert len(lines()) == 4
    assert batch("--tasks", "caption") == 0
    assert len(lines()) == 5


def test_a_broken_server_does_not_eat_the_list(server, folder, capsys):
    """Many faults in a row end the run with the last of them."""

    def fault(count):
        if count > 1:
            raise InternalError("the stub is dead")

    server.fail = fault
    for number in range(100):
        Image.new("RGB", (4, 4)).save(f"images/more{number}.png")
    assert batch("--tasks", "caption") == 1
    assert len(server.asked) < 60
    assert "florence2: the stub is dead" in capsys.readouterr().err


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
        (["--tasks", "caption", "--text", "x"], "none of the tasks takes one"),
        (["--tasks", "caption", "--concurrency", "0"], "concurrency must be at least 1"),
    ],
)
def test_mistakes_on_the_command_line(server, folder, capsys, arguments, sentence):
    """One sentence and exit code 2, before any image is asked about."""
    assert batch(*arguments) == 2
    assert sentence in capsys.readouterr().err
    assert server.images_asked() == []


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


def test_other_formats_are_made_from_all_lines(server, folder):
    """COCO, YOLO and CSV hold the answers of earlier runs too, and are complete after a run that asked nothing."""
    batch("--tasks", "caption,od", sources=["images/0.png", "images/1.png"])
    formats = ["--coco", "made/coco.json", "--yolo", "labels", "--csv", "made/words.csv"]
    assert batch("--tasks", "caption,od", *formats, sources=["images/0.png", "images/1.png"]) == 0
    coco = json.loads(Path("made/coco.json").read_text())
    assert sorted(image["file_name"] for image in coco["images"]) == ["images/0.png", "images/1.png"]
    assert coco["categories"] == [{"id": 1, "name": "dog"}]
    assert [note["id"] for note in coco["annotations"]] == [1, 2]
    assert coco["annotations"][0]["bbox"] == [10, 20, 20, 20]
    assert Path("labels/images/1.txt").read_text() == "0 0.500000 0.600000 0.500000 0.400000\n"
    assert Path("labels/classes.txt").read_text() == "dog\n"
    with open("made/words.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["image"], row["answer"]) for row in rows) == [
        ("images/0.png", "a dog, sleeping"), ("images/1.png", "a dog, sleeping"),
    ]  # fmt: skip


def test_label_files_do_not_mix_images(server, folder, capsys):
    """Two images that differ only in their ending cannot both have a YOLO file."""
    Path("images/0.jpg").write_bytes(Path("images/0.png").read_bytes())
    assert batch("--tasks", "od", "--yolo", "labels") == 2
    assert "would share the label file labels/images/0.txt" in capsys.readouterr().err


def test_drawings_are_there_when_their_line_is(server, folder):
    """Each answer has its drawing, also when an image has several tasks."""
    assert batch("--tasks", "caption,od", "--draw", "drawn") == 0
    assert sorted(path.name for path in Path("drawn/images").iterdir())[:2] == ["0.png.caption.jpg", "0.png.od.jpg"]
    assert len(lines()) == len(list(Path("drawn/images").iterdir())) == 10


def test_undrawable_folder_ends_the_run(server, folder, capsys, caplog):
    """Where drawings cannot be written the run says so, and no line promises one."""
    Path("drawn").touch()
    assert batch("--tasks", "caption", "--draw", "drawn") == 2
    gc.collect()  # asyncio complains of unread errors when their tasks are collected
    error = capsys.readouterr().err
    assert "drawn" in error and not caplog.records
    assert lines() == []


def test_file_names_of_any_bytes_are_kept(server, folder):
    """Names that are not UTF-8 survive JSON."""
    name = os.fsdecode(b"images/caf\xe9.png")
    os.rename("images/0.png", name)
    assert batch("--tasks", "caption", "--csv", "words.csv", "--coco", "coco.json", "--yolo", "labels") == 0
    assert name in {entry.key[0] for entry in entries(Path("out.jsonl"))}
    assert batch("--tasks", "caption") == 0
    assert len(lines()) == 5
