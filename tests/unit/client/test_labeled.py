"""Labeled images in COCO's format, and which objects they confirm."""

import json

import pytest

from florence2.errors import InvalidRequest
from florence2_client import Found
from florence2_client.exchange import Question
from florence2_client.labeled import confirmed, overlap, read_coco

BOX = (10.0, 10.0, 30.0, 30.0)
COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20]},
        {"image_id": 7, "category_id": 2, "bbox": [50, 50, 20, 20]},
        {"image_id": 7, "category_id": 2, "bbox": [0, 0, 100, 100], "iscrowd": 1},
    ],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "annotations.json").write_text(json.dumps(COCO))
    return tmp_path


def test_objects_are_read_with_their_labels(folder):
    """With boxes as x1, y1, x2, y2; crowds are no single objects."""
    [image] = read_coco(folder)
    assert image.path == folder / "a.jpg"
    assert image.objects == [("dog", BOX), ("cat", (50.0, 50.0, 70.0, 70.0))]
    (folder / "other.json").write_text("{}")
    assert read_coco(folder)[0] == image  # found by its name
    assert read_coco(folder, folder / "annotations.json")[0] == image


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "no .json file"),
        ({"a.json": COCO, "b.json": COCO}, "more than one .json file"),
        ({"a.json": []}, "not a COCO file of boxes"),
        ({"a.json": {"shapes": []}}, "not a COCO file of boxes"),
        ({"a.json": COCO | {"annotations": [{"image_id": 7, "category_id": 1}]}}, "not a COCO file of boxes"),
        ({"a.json": COCO | {"annotations": [{"image_id": 8, "category_id": 1, "bbox": [1, 2, 3, 4]}]}}, "not a COCO"),
        ({"a.json": COCO | {"images": [{"id": 7, "file_name": "gone.jpg"}]}}, "gone.jpg"),
    ],
)
def test_other_folders_are_refused(tmp_path, files, sentence):
    """With a sentence that says what is expected."""
    (tmp_path / "a.jpg").touch()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InvalidRequest, match=sentence):
        read_coco(tmp_path)


def test_a_task_is_asked_once_or_for_each_label(folder):
    [image] = read_coco(folder)
    assert [question.text for question in image.questions("<OD>")] == [None]
    phrases = [question.text for question in image.questions("<OPEN_VOCABULARY_DETECTION>")]
    assert phrases == ["dog", "cat"]
    assert image.labels_for(Question(image.path, "<OPEN_VOCABULARY_DETECTION>", "dog")) == [("dog", BOX)]
    assert [label for label, _ in image.labels_for(Question(image.path, "<REGION_PROPOSAL>"))] == ["", ""]


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([Found("dog", BOX, confidence=0.5)], [True]),
        ([Found("Dog", BOX, confidence=0.5)], [True]),
        ([Found("cat", BOX, confidence=0.5)], [False]),
        ([Found("dog", (10.0, 10.0, 30.0, 20.1), confidence=0.5)], [True]),
        ([Found("dog", (10.0, 10.0, 30.0, 19.9), confidence=0.5)], [False]),
        ([Found("dog", BOX, confidence=0.5), Found("dog", BOX, confidence=0.6)], [False, True]),
        ([], []),
    ],
)
def test_an_object_is_right_if_a_label_confirms_it(found, right):
    """By one of the same name, with an overlap of at least 0.5; one label confirms the surest object only."""
    assert confirmed(found, [("dog", BOX)]) == right


def test_overlap_of_degenerate_boxes_is_zero():
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
