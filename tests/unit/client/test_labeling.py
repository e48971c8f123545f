"""label: a folder becomes a data set of supervision, YOLO and COCO, and resumes where it stopped."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
import supervision
import yaml
from PIL import Image
from pycocotools.coco import COCO

from florence2.errors import ConnectionFailed, InvalidImage, InvalidOption, InvalidPrompt, InvalidRequest
from florence2_client import Client, label
from tests.unit.client.finder import Finder, boxes, outlines, places

STAR, BOX, CLOSE = [10, 10, 50, 50], [60, 60, 90, 90], [12, 10, 52, 50]
FOUND = {
    "open_vocabulary_detection: a star": places((STAR, 0.9)),
    "open_vocabulary_detection: a sun": places((CLOSE, 0.6)),
    "open_vocabulary_detection: a box": places((BOX, 0.4)),
    "od": boxes(("star", STAR, 0.9), ("box", BOX, 0.4)),
    "referring_expression_segmentation: a star": outlines(([[10, 10, 50, 10, 10, 50], [60, 60, 90, 60, 60, 90]], 0.7)),
}
ONTOLOGY = {"a star": "star", "a sun": "star", "a box": "box"}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with images of one name in two folders, and a file that is none."""
    for name in ("a.png", "sub/a.png", "b.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def labeled(folder, *arguments, finder=None, **options):
    with Client(transport=finder or Finder(FOUND), retry_for=0) as client:
        return label(folder, *arguments, client=client, **options)


def test_the_result_is_a_data_set_of_supervision(folder):
    dataset = labeled(folder, ontology=ONTOLOGY)
    assert isinstance(dataset, supervision.DetectionDataset) and dataset.classes == ["star", "box"]
    assert dataset.image_paths == [str(folder / name) for name in ("a.png", "b.jpg", "sub/a.png")]
    for _, pixels, detections in dataset:
        assert pixels.shape == (100, 100, 3)
        assert detections.class_id.tolist() == [0, 0, 1]
        assert detections.data["class_name"].tolist() == ["star", "star", "box"]
        assert detections.confidence.tolist() == pytest.approx([0.9, 0.6, 0.4])


def test_overlapping_and_unsure_objects_are_left_out(folder):
    """`nms` keeps the surest of overlapping objects of a class; `min_confidence` leaves out what is less sure."""
    detections = next(iter(labeled(folder, ontology=ONTOLOGY, nms=0.5).annotations.values()))
    assert detections.xyxy.tolist() == [STAR, BOX]
    detections = next(iter(labeled(folder, ontology=ONTOLOGY, min_confidence=0.5).annotations.values()))
    assert detections.xyxy.tolist() == [STAR, CLOSE]


def test_without_an_ontology_the_classes_are_the_models_own(folder):
    """They are numbered as they appear. If classes are given, other labels are left out, or kept under one name."""
    assert labeled(folder).classes == ["star", "box"]
    assert [each.class_id.tolist() for each in labeled(folder, ["Box"], task="od").annotations.values()] == [[0]] * 3
    kept = labeled(folder, ["box"], task="od", other="thing")
    assert kept.classes == ["box", "thing"]
    assert [each.class_id.tolist() for each in kept.annotations.values()] == [[1, 0]] * 3


def test_outlines_are_masks(folder):
    dataset = labeled(folder, ["a star"], task="segment")
    [mask] = next(iter(dataset.annotations.values())).mask
    assert mask.shape == (100, 100) and mask[12, 12] and mask[62, 62] and not mask[40, 80]


def test_yolo_is_what_ultralytics_and_supervision_read(folder, tmp_path):
    labeled(folder, ontology=ONTOLOGY, nms=0.5, yolo=tmp_path / "yolo")
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert data == {
        "path": str(tmp_path / "yolo"), "train": "images", "val": "images", "names": {0: "star", 1: "box"},
    }  # fmt: skip
    assert (tmp_path / "yolo" / "images" / "sub" / "a.png").is_file()
    assert (tmp_path / "yolo" / "labels" / "sub" / "a.txt").is_file()
    read = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "yolo/images"), str(tmp_path / "yolo/labels"), str(tmp_path / "yolo/data.yaml")
    )
    assert [each.class_id.tolist() for each in read.annotations.values()] == [[0, 1]] * 2  # of the upper folder only
    assert np.allclose(next(iter(read.annotations.values())).xyxy, [STAR, BOX], atol=0.01)


def test_coco_is_what_pycocotools_reads(folder, tmp_path):
    labeled(folder, ontology=ONTOLOGY, coco=tmp_path / "coco.json")
    read = COCO(tmp_path / "coco.json")
    assert [image["file_name"] for image in read.loadImgs(read.getImgIds())] == ["a.png", "b.jpg", "sub/a.png"]
    assert [category["name"] for category in read.loadCats(read.getCatIds())] == ["star", "box"]
    assert len(read.getAnnIds(catIds=[1])) == 6 and len(read.getAnnIds(catIds=[2])) == 3
    assert read.loadAnns(1)[0]["score"] == 0.9


def test_a_damaged_image_is_left_out(folder, tmp_path, caplog):
    (folder / "broken.png").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING, "florence2_client.images"):
        dataset = labeled(folder, ["a star"], yolo=tmp_path / "yolo")
    assert len(dataset) == 3 and not (tmp_path / "yolo/images/broken.png").exists()
    assert "broken.png is left out: the image is damaged" in caplog.text


class Thief(Finder):
    """Takes files away when the request of an image comes in."""

    def __init__(self, answers, stolen):
        super().__init__(answers)
        self.stolen = stolen

    def answer(self, tensors, timeout):
        if len(self.asked) in self.stolen:
            self.stolen[len(self.asked)].unlink()
        return super().answer(tensors, timeout)


@pytest.mark.parametrize(
    ("request_number", "name"), [(0, "b.jpg"), (0, "sub/a.png"), (2, "a.png")], ids=["next", "last", "answered"]
)
def test_an_image_that_is_deleted_during_the_run_costs_only_itself(folder, tmp_path, caplog, request_number, name):
    """Whether it was to be sent, or was answered already: it is named once, and the rest goes on."""
    finder = Thief(FOUND, {request_number: folder / name})
    with caplog.at_level(logging.WARNING, "florence2_client.images"):
        dataset = labeled(
            folder, ["a star"], finder=finder, concurrency=1, yolo=tmp_path / "yolo", coco=tmp_path / "coco.json"
        )
    left = [str(folder / each) for each in ("a.png", "b.jpg", "sub/a.png") if each != name]
    assert dataset.image_paths == left and len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 2
    assert len(list((tmp_path / "yolo/images").rglob("*.*"))) == 2
    assert caplog.messages == [f"{folder / name} is left out: there is no file {folder / name}"]


def test_what_cannot_be_read_costs_only_itself(folder, caplog):
    """A folder with the name of an image is a folder; a pipe would be waited for without end."""
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe2.tif")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "broken.png").symlink_to("nothing.png")
    (folder / "more").symlink_to(folder / "sub")
    (folder / "x.jpg").mkdir()
    Image.new("RGB", (100, 100)).save(folder / "x.jpg" / "y.png")
    with caplog.at_level(logging.WARNING, "florence2_client.images"):
        dataset = labeled(folder, ["a star"])
    assert dataset.image_paths == [str(folder / each) for each in ("a.png", "b.jpg", "sub/a.png", "x.jpg/y.png")]
    words = dict(message.removeprefix(f"{folder}/").split(" is left out: ") for message in caplog.messages)
    assert words == {
        "more/": "a link to a folder",
        "broken.png": f"there is no file {folder}/broken.png",
        "loop.png": f"{folder}/loop.png cannot be read: Too many levels of symbolic links",
        "pipe.png": f"{folder}/pipe.png cannot be read: it is not a regular file",
        "pipe2.tif": f"{folder}/pipe2.tif cannot be read: it is not a regular file",
    }


def test_an_image_that_is_deleted_while_copies_are_written(folder, tmp_path, caplog, monkeypatch):
    def read(path):
        if path.name == "b.jpg":
            raise InvalidImage("there is no file b.jpg")
        return path.read_bytes()

    monkeypatch.setattr("florence2_client.labeling.read_bytes", read)
    with caplog.at_level(logging.WARNING, "florence2_client.images"):
        labeled(folder, ["a star"], yolo=tmp_path / "yolo")
    assert len(list((tmp_path / "yolo/labels").rglob("*.txt"))) == 2
    assert caplog.messages == [f"{folder}/b.jpg is not copied: there is no file b.jpg"]


def test_answers_of_another_model_are_not_mixed_in(folder, tmp_path):
    """Only what the server tells counts; the time of an export does not."""

    def sent(description):
        finder = Finder(FOUND)
        finder.describe = lambda model, timeout: description
        labeled(folder, ["a star"], finder=finder, out=tmp_path / "answers.jsonl")
        return len(finder.asked)

    assert sent({"weights_sha256": "aa", "exported": "today"}) == 3
    assert sent({"weights_sha256": "aa", "exported": "tomorrow"}) == 0
    assert sent({}) == 0
    assert sent({"weights_sha256": "bb"}) == 3


@pytest.mark.parametrize(
    "arguments",
    [{"nms": float("nan")}, {"nms": 0}, {"nms": 2}, {"nms": -1}, {"min_confidence": float("nan")},
     {"min_confidence": 50}, {"concurrency": float("nan")}],
    ids=str,
)  # fmt: skip
def test_a_threshold_that_makes_no_sense_is_refused(folder, arguments):
    """NaN would leave out everything without a word."""
    with pytest.raises(InvalidOption):
        labeled(folder, ["a star"], **arguments)


def test_outputs_are_checked_before_anything_is_sent(folder, tmp_path):
    """Nothing is worse than an error after hours."""
    (tmp_path / "file").touch()
    finder = Finder(FOUND)
    for arguments in ({"coco": tmp_path / "file/a.json"}, {"yolo": tmp_path / "file"}, {"out": tmp_path / "file/a"}):
        with pytest.raises(OSError):
            labeled(folder, ["a star"], finder=finder, **arguments)
    assert not finder.asked
    labeled(folder, ["a star"], out=tmp_path / "new/folder/answers.jsonl")
    assert (tmp_path / "new/folder/answers.jsonl").exists()


def test_the_same_call_resumes(folder, tmp_path):
    """Only what has no answer yet is sent: new and changed images, new phrases, and everything with other options."""
    asked = {"ontology": ONTOLOGY, "out": tmp_path / "answers.jsonl"}
    Image.new("RGB", (90, 90)).save(folder / "c.png")
    (folder / "broken.png").write_bytes(b"damaged")

    def sent(**options):
        finder = Finder(FOUND)
        return len(labeled(folder, finder=finder, **asked | options)), len(finder.asked)

    assert sent() == (4, 15)
    assert sent() == (4, 3)  # the damaged image again
    (folder / "broken.png").unlink()
    Image.new("RGB", (80, 80)).save(folder / "c.png")
    assert sent() == (4, 3)
    assert sent(ontology=ONTOLOGY | {"a dog": "dog"}) == (4, 4)
    assert sent(num_beams=1) == (4, 12)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 16


def test_an_absent_server_ends_it_and_keeps_the_answers(folder, tmp_path):
    with pytest.raises(ConnectionFailed):
        labeled(folder, ["a star"], finder=Finder({"open_vocabulary_detection: a star": ConnectionFailed("absent")}))
    away = Finder(FOUND | {"open_vocabulary_detection: a box": ConnectionFailed("absent")})
    with pytest.raises(ConnectionFailed):
        labeled(folder, ["a star", "a box"], finder=away, out=tmp_path / "answers.jsonl", concurrency=1)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


def test_mistakes_are_named(folder, tmp_path):
    for arguments in ({"classes": ["a"], "ontology": {"a": "b"}}, {"classes": "a star"}, {"task": "find"},
                      {"task": "caption"}, {"task": "region_proposal"}, {"classes": ["a"], "other": "b"}):  # fmt: skip
        with pytest.raises(InvalidPrompt):
            labeled(folder, **arguments)
    (tmp_path / "empty").mkdir()
    for empty in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(InvalidRequest):
            labeled(empty, ["a"])
    with pytest.raises(InvalidRequest, match="not both"):
        labeled(folder, ["a"], url="grpc://elsewhere:1")
    with pytest.raises(InvalidRequest, match="would label the copies"):
        labeled(folder, ["a"], yolo=folder / "labeled")
    Image.new("RGB", (9, 9)).save(folder / "a.jpg")
    with pytest.raises(InvalidRequest, match=r"a\.jpg and .*a\.png would share"):
        labeled(folder, ["a"])


def test_without_supervision_nothing_is_sent(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finder = Finder(FOUND)
    with pytest.raises(ImportError, match=r"florence2-triton\[label\]"):
        labeled(folder, ["a star"], finder=finder)
    assert not finder.asked


def test_a_data_set_without_objects_is_complete(folder, tmp_path):
    """It has all images, the classes that were looked for, and empty label files."""
    dataset = labeled(folder, ["a dog"], yolo=tmp_path / "yolo", coco=tmp_path / "coco.json")
    assert len(dataset) == 3 and dataset.classes == ["a dog"]
    assert (tmp_path / "yolo/labels/a.txt").read_text() == ""
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"] == []


def test_a_data_set_without_images(tmp_path):
    """Its files are written, even if no image could be read."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/broken.png").write_bytes(b"damaged")
    dataset = labeled(tmp_path / "photos", ["a star"], yolo=tmp_path / "yolo", coco=tmp_path / "coco.json")
    assert len(dataset) == 0
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"] == {0: "a star"}
    assert json.loads((tmp_path / "coco.json").read_text())["images"] == []
