"""The answers of `florence2 batch` as COCO, YOLO and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.unit.client.cli.batch.runs import ANSWERS, batch, lines


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


def test_masks_are_run_length_encoded_if_asked_for(server, folder):
    """A box has a mask too; without --rle it has no segmentation. --rle needs --coco."""
    for flags, segmented in (([], False), (["--rle"], True)):
        assert batch("--tasks", "od", "--coco", "coco.json", *flags, sources=["images/0.png"]) == 0
        [note] = json.loads(Path("coco.json").read_text())["annotations"]
        assert (note["segmentation"] != []) == segmented and note["area"] == 400
    assert list(note["segmentation"]) == ["size", "counts"]
    assert batch("--tasks", "od", "--rle", sources=["images/0.png"]) == 2


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


def test_a_data_set_without_objects_is_announced(server, folder, capsys):
    assert batch("--tasks", "caption", "--coco", "coco.json") == 0
    assert "note: nothing was located, so COCO and YOLO files have no objects" in capsys.readouterr().err
