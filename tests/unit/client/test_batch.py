"""`florence2 batch` against a transport of the test's own: what is written, what is asked again, and what ends it."""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.errors import ConnectionFailed, InternalError, InvalidImage, InvalidRequest
from florence2_client import cli
from florence2_client.journal import Journal, entries

ANSWERS = {
    "<CAPTION>": "a dog, sleeping",
    "<OD>": {"bboxes": [[10, 20, 30, 40]], "labels": ["dog"], "scores": [0.1], "confidences": [0.5]},
    "<DENSE_REGION_CAPTION>": {"bboxes": [[10, 20, 30, 41]], "labels": ["a dog"], "scores": [0.5]},
    "<REGION_PROPOSAL>": {"bboxes": [[11, 20, 30, 40]], "labels": [""], "scores": [0.5]},
    "<REFERRING_EXPRESSION_SEGMENTATION>": {"polygons": [[[0, 0, 10, 0, 10, 10]]], "labels": [""]},
    "<REGION_TO_SEGMENTATION>": {"polygons": [[[0, 0, 10, 0, 10, 10]]], "labels": [""]},
    "<OPEN_VOCABULARY_DETECTION>": {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []},
    "<DocVQA>What?": "42",
}


class FakeServer:
    """Answers by task; `fail` may raise by the count of requests so far."""

    def __init__(self):
        self.asked, self.fail, self.reads_all = [], lambda count: None, False

    async def infer(self, model, tensors, timeout):
        await asyncio.sleep(0)
        self.asked.append({name: tensor[0] for name, tensor in tensors.items()})
        if tensors["IMAGE"][0].startswith(b"bad") and not self.reads_all:
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


@pytest.mark.parametrize(("least", "count"), [("0.5", 5), ("0.51", 0)])
def test_unsure_objects_are_left_out_of_files_for_other_tools(server, folder, least, count):
    """The journal keeps them, so that another run can make the files again with another minimum."""
    formats = ["--coco", "coco.json", "--yolo", "labels", "--draw", "drawn"]
    assert batch("--tasks", "od", *formats, "--min-confidence", least) == 0
    coco = json.loads(Path("coco.json").read_text())
    assert [annotation["score"] for annotation in coco["annotations"]] == [0.5] * count and len(coco["images"]) == 5
    assert len(list(filter(None, (path.read_text() for path in Path("labels/images").glob("*.txt"))))) == count
    assert all(line["answer"] == ANSWERS["<OD>"] for line in lines())
    asked = len(server.asked)
    assert batch("--tasks", "od", "--coco", "coco.json", "--min-confidence", "0.2") == 0
    assert len(json.loads(Path("coco.json").read_text())["annotations"]) == 5 and len(server.asked) == asked


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
        (["--tasks", "caption", "--text", "x"], "none of the tasks takes the text 'x'"),
        (["--tasks", "caption,open_vocabulary_detection,region_to_ocr", "--text", "x"], "<REGION_TO_OCR> takes a text"),
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


def test_masks_are_run_length_encoded_if_asked_for(server, folder):
    """Boxes have one too; without --rle a box has no segmentation."""
    for flags, segmented in (([], False), (["--rle"], True)):
        assert batch("--tasks", "od", "--coco", "coco.json", *flags, sources=["images/0.png"]) == 0
        [note] = json.loads(Path("coco.json").read_text())["annotations"]
        assert (note["segmentation"] != []) == segmented and note["area"] == 400
    assert list(note["segmentation"]) == ["size", "counts"]
    assert batch("--tasks", "od", "--rle", sources=["images/0.png"]) == 2


def test_several_texts_go_to_each_task_that_takes_one(server, folder):
    """Each is an answer of its own, and the objects of all are in the COCO file."""
    texts = ["--text", "a dog", "--text", "a red car"]
    assert batch("--tasks", "od,open_vocabulary_detection", *texts, sources=["images/0.png"]) == 0
    asked = sorted((asked["TASK"], asked.get("TEXT", b"")) for asked in server.images_asked())
    found = b"<OPEN_VOCABULARY_DETECTION>"
    assert asked == [(b"<OD>", b""), (found, b"a dog"), (found, b"a red car")]
    assert [line.get("prompt_text") for line in lines()].count("a red car") == 1
    assert batch("--tasks", "od,open_vocabulary_detection", *texts, sources=["images/0.png"]) == 0
    assert len(lines()) == 3


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


BOX_TASKS = ["dense_region_caption", "od", "region_proposal"]


@pytest.mark.parametrize(("first", "label"), [("od", "dog"), ("dense_region_caption", "a dog")])
def test_an_object_is_in_a_data_set_once(server, folder, capsys, first, label):
    """Several box tasks find the same dog. Those of the first task count, and the user is told."""
    tasks = ",".join([first, "caption", *(task for task in BOX_TASKS if task != first)])
    arguments = ["--tasks", tasks, "--coco", "coco.json", "--yolo", "labels"]
    assert batch(*arguments, sources=["images/0.png", "images/1.png"]) == 0
    coco = json.loads(Path("coco.json").read_text())
    assert sorted(note["image_id"] for note in coco["annotations"]) == [1, 2]  # answers come in any order
    assert [category["name"] for category in coco["categories"]] == [label]
    assert Path("labels/classes.txt").read_text() == f"{label}\n"
    assert len(Path("labels/images/0.txt").read_text().splitlines()) == 1
    note = next(line for line in capsys.readouterr().err.splitlines() if "--all-objects" in line)
    assert f"objects of <{first.upper()}> only" in note and "<REGION_PROPOSAL>" in note


def test_objects_of_all_tasks_are_written_if_asked_for(server, folder, capsys):
    """Each of the three box tasks adds its own."""
    arguments = ["--tasks", ",".join(BOX_TASKS), "--coco", "coco.json", "--yolo", "labels", "--all-objects"]
    assert batch(*arguments, sources=["images/0.png"]) == 0
    assert len(json.loads(Path("coco.json").read_text())["annotations"]) == 3
    assert len(Path("labels/images/0.txt").read_text().splitlines()) == 3
    assert "--all-objects" not in capsys.readouterr().err


def test_a_task_that_finds_nothing_gives_way_to_the_next(server, folder):
    """The first task is the first that located anything; different texts of one task are one task."""
    tasks = "<OPEN_VOCABULARY_DETECTION>a cat,<REFERRING_EXPRESSION_SEGMENTATION>a hat"
    tasks += ",<REFERRING_EXPRESSION_SEGMENTATION>a shoe"
    assert batch("--tasks", tasks, "--coco", "coco.json", "--yolo", "labels", sources=["images/0.png"]) == 0
    names = [category["name"] for category in json.loads(Path("coco.json").read_text())["categories"]]
    assert sorted(names) == sorted(Path("labels/classes.txt").read_text().splitlines()) == ["a hat", "a shoe"]


def test_a_data_set_without_objects_is_announced(server, folder, capsys):
    assert batch("--tasks", "caption", "--coco", "coco.json") == 0
    assert "note: nothing was located, so COCO and YOLO files have no objects" in capsys.readouterr().err


def test_csv_reports_what_it_leaves_out(server, folder, capsys):
    """It has only text: boxes, outlines and errors are counted."""
    Path("images/1.png").write_bytes(b"bad")
    sources = ["images/0.png", "images/1.png", "images/2.png"]
    assert batch("--tasks", "caption,od", "--csv", "words.csv", sources=sources) == 2
    note = "note: words.csv has the text answers only, without "
    [left_out] = [line.partition(note)[2] for line in capsys.readouterr().err.splitlines() if note in line]
    assert sorted(left_out.split(", ")) == ["answers of od (2)", "errors (1)"]
    assert batch("--tasks", "caption", "--csv", "captions.csv", sources=["images/0.png"], out="captions.jsonl") == 0
    assert "text answers only" not in capsys.readouterr().err


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
    assert server.asked == []


def test_file_names_of_any_bytes_are_kept(server, folder):
    """Names that are not UTF-8 survive JSON."""
    name = os.fsdecode(b"images/caf\xe9.png")
    os.rename("images/0.png", name)
    assert batch("--tasks", "caption", "--csv", "words.csv", "--coco", "coco.json", "--yolo", "labels") == 0
    assert name in {entry.key[0] for entry in entries(Path("out.jsonl"))}
    assert batch("--tasks", "caption") == 0
    assert len(lines()) == 5


# ---- what outputs must not do to inputs


def test_drawings_are_not_read_as_images(server, folder, capsys):
    """Neither by the next run, nor by one that draws elsewhere, by a pattern, or that names a drawing."""
    assert batch("--tasks", "caption", "--draw", "drawn", sources=["."]) == 0
    assert batch("--tasks", "caption", "--draw", "drawn", sources=["."]) == 0
    assert "note: skipped drawn/ (drawings)" in capsys.readouterr().err
    assert batch("--tasks", "caption", "--draw", "drawn/again", sources=["."], out="b.jsonl") == 0
    assert batch("--tasks", "caption", sources=["**/*.jpg", "images"], out="c.jsonl") == 0
    assert batch("--tasks", "caption", sources=["drawn/images/0.png.caption.jpg", "images"], out="d.jsonl") == 0
    assert {len(lines(out)) for out in ("out.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")} == {5}
    assert batch("--tasks", "caption", sources=["drawn"], out="e.jsonl") == 2


@pytest.mark.parametrize(
    ("sources", "draw"),
    [
        (["images"], "images"),
        (["images"], "."),
        (["images"], "link"),
        (["link"], "images"),
        (["images/0.png"], "images"),
    ],
)
def test_images_and_drawings_do_not_share_a_folder(server, folder, capsys, sources, draw):
    """Under whatever name, before anything is sent or written."""
    Path("link").symlink_to("images")
    assert batch("--tasks", "caption", "--draw", draw, sources=sources) == 2
    assert "give --draw a folder of its own" in capsys.readouterr().err
    assert server.asked == [] and len(list(Path("images").iterdir())) == 5


def test_a_drawing_replaces_a_link_and_not_its_target(server, folder):
    """Nor does it change the other name of the same file."""
    photo = Path("images/1.png").read_bytes()
    Path("drawn/images").mkdir(parents=True)
    Path("drawn/images/0.png.caption.jpg").symlink_to(folder / "images/1.png")
    os.link("images/1.png", "drawn/images/2.png.caption.jpg")
    Path("drawn/.florence2-drawings").touch()
    assert batch("--tasks", "caption", "--draw", "drawn") == 0
    assert Path("images/1.png").read_bytes() == photo
    assert Image.open("drawn/images/0.png.caption.jpg").format == "JPEG"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "images/0.png"],
        ["--out", "new.jpg"],
        ["--coco", "images/0.png"],
        ["--csv", "photo"],
        ["--coco", "link.json"],
        ["--out", "list.txt"],
        ["--csv", "same.csv", "--coco", "same.csv"],
        ["--out", "images"],
        ["--coco", "/dev/null"],
        ["--out", "/dev/null"],
    ],
    ids=" ".join,
)
def test_outputs_do_not_replace_inputs(server, folder, arguments):
    """Images and lists stay as they are, under whatever name they are given."""
    os.link("images/1.png", "photo")
    os.symlink("images/1.png", "link.json")
    Path("list.txt").write_text("photo\n")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert batch("--tasks", "caption", *arguments, sources=["images", "list.txt"]) == 2
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert server.asked == []


def test_images_of_the_same_name_have_drawings_of_their_own(server, folder, capsys):
    """In two folders, with two suffixes, or for two texts that only punctuation tells apart."""
    Path("b").mkdir()
    for copy in ("b/0.png", "b/0.bmp"):
        Image.open("images/0.png").save(copy)
    phrases = "<OPEN_VOCABULARY_DETECTION>a dog,<OPEN_VOCABULARY_DETECTION>a_dog"
    assert batch("--tasks", phrases, "--draw", "drawn", sources=["images/0.png", "b"]) == 0
    assert len(list(Path("drawn").rglob("*.jpg"))) == 6
    absolute = [str(folder / "b"), str(folder / "b").lstrip("/")]
    Path(absolute[1]).mkdir(parents=True)
    Image.open("images/0.png").save(Path(absolute[1], "0.png"))
    assert batch("--tasks", "caption", "--draw", "drawn", sources=absolute, out="b.jsonl") == 2
    assert "would share the drawing" in capsys.readouterr().err


# ---- what an earlier run may leave behind


@pytest.mark.parametrize("text", ["1,2,3", "5,5,1,1", "a,b,c,d", "<loc_1><loc_2>", " ", "1,2,3,4e999"])
def test_a_mistyped_region_is_found_before_the_first_request(server, folder, capsys, text):
    """Nothing is sent or written."""
    assert batch("--tasks", "region_to_segmentation", "--text", text) == 2
    assert server.asked == [] and not Path("out.jsonl").exists()
    assert "<REGION_TO_SEGMENTATION> takes a region" in capsys.readouterr().err


def test_the_summary_is_about_this_run(server, folder, capsys):
    """Errors of other images and other texts in the same file are none of this one."""
    Path("images/1.png").write_bytes(b"bad")
    assert batch("--tasks", "caption") == 2
    capsys.readouterr()
    assert batch("--tasks", "od", sources=["images/0.png", "images/2.png"]) == 0
    assert capsys.readouterr().err == "out.jsonl: 2 of 2 done\n"


def test_a_broken_file_is_reported_once(server, folder, capsys):
    """It has one line, whatever the number of tasks, also when a task is added."""
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


def test_a_missing_file_is_not_final(server, folder, capsys):
    """It makes the exit code 2 until it is there; the next run sends it."""
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
    """Its old answers are replaced, an error too, and this is announced."""
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
def test_other_options_do_not_pass_for_done(server, folder, capsys, arguments, difference):
    """The answers are kept and the difference is named; other tasks may have other options."""
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
    """Their lines say nothing of options and files."""
    batch("--tasks", "caption")
    kept = [{name: value for name, value in line.items() if name != "request"} for line in lines()]
    Path("out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    asked = len(server.asked)
    assert batch("--tasks", "caption", "--num-beams", "1") == 0
    assert len(server.asked) == asked


def test_each_page_is_an_image(server, folder):
    """With answers, drawings and label files of its own; a resumed run sends only what is missing."""
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


# ---- where the answers go


def test_answers_are_printed(server, folder, capsys):
    """`--out -` leaves no file, and the other formats are made from what was printed."""
    assert batch("--tasks", "caption,od", "--coco", "coco.json", out="-") == 0
    captured = capsys.readouterr()
    assert sorted((line["image"], line["task"]) for line in map(json.loads, captured.out.splitlines())) == ALL
    assert captured.err == "standard output: 10 of 10 done\n"
    assert len(json.loads(Path("coco.json").read_text())["images"]) == 5
    assert not Path("-").exists()


def test_folders_of_outputs_are_made(server, folder):
    """With all folders above them."""
    assert batch("--tasks", "caption", "--csv", "a/b/words.csv", out="new/dir/x.jsonl") == 0
    assert len(lines("new/dir/x.jsonl")) == 5


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["--csv", "file/x.csv"], "file"), (["--coco", "images"], "images"), (["--draw", "file"], "file"),
     (["--out", "file/x.jsonl"], "file"), (["--yolo", "file"], "file")],
)  # fmt: skip
def test_an_unwritable_output_is_named_before_the_first_request(server, folder, capsys, arguments, name):
    """Exit code 2: it is a mistake in the command."""
    Path("file").touch()
    assert batch("--tasks", "caption", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"florence2: {name}") and "cannot be written: " in error
    assert server.asked == []


@pytest.mark.parametrize("output", ["out.jsonl", "drawn/images", "coco.json"])
def test_a_full_disk_is_named(folder, output):
    """With exit code 1 and no traceback; the next run does the rest."""
    code = "import resource, signal, sys; sys.path.insert(0, sys.argv[1]); import pytest\n"
    code += "from tests.unit.client.test_batch import FakeServer, batch\n"
    code += "import florence2_client.async_client as client; client.open_async_transport = lambda _: FakeServer()\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
    code += "sys.exit(batch('--tasks', 'caption', *sys.argv[3:]))"
    limit = {"out.jsonl": 700, "drawn/images": 350, "coco.json": 1}[output]
    others = {"out.jsonl": [], "drawn/images": ["--draw", "drawn"], "coco.json": ["--coco", "coco.json"]}[output]
    if output == "coco.json":
        code = code.replace("resource.setrlimit", "batch('--tasks', 'caption'); resource.setrlimit")
    root = str(Path(__file__).parents[3])
    ended = subprocess.run([sys.executable, "-c", code, root, str(limit), *others], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"florence2: {output}"), ended.stderr
    assert ended.stderr.endswith("cannot be written: File too large\n")


# ---- what else may go away or change


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
     ConnectionFailed("no answer")],
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
