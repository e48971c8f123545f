"""The model for FiftyOne: FiftyOne itself applies it where that is installed; otherwise a stand-in holds its labels."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from florence2.errors import ConnectionFailed, InternalError, InvalidImage, InvalidPrompt
from tests.unit.client.finder import NOTHING, Finder, boxes, outlines, places

STAR, BOX = [10, 20, 50, 60], [60, 60, 90, 90]
FOUND = {
    "od": boxes(("star", STAR, 0.9), ("box", BOX, 0.4)),
    "open_vocabulary_detection: a star": places((STAR, 0.9)),
    "open_vocabulary_detection: a hill": NOTHING["<OPEN_VOCABULARY_DETECTION>"]
    | {"polygons": [[[10, 20, 30, 20, 10, 40]]], "polygons_labels": ["?"], "polygons_confidences": [0.6]},
    "region_proposal": boxes(("", BOX, 0.4)),
    "referring_expression_segmentation: a star": outlines(([[10, 20, 50, 20, 10, 60], [60, 60, 90, 60, 90, 90]], 0.7)),
    "ocr_with_region": {"quad_boxes": [[10, 10, 50, 12, 50, 30, 10, 28]], "labels": ["HELLO"], "confidences": [0.9]},
    "caption": "a star",
}
LABELS = ("Classification", "Detection", "Detections", "Polyline", "Polylines")
INSTALLED = importlib.util.find_spec("fiftyone") is not None


@pytest.fixture
def model(monkeypatch):
    """Return a function that makes a model whose requests `finder` answers."""
    if not INSTALLED:
        package, models = ModuleType("fiftyone"), ModuleType("fiftyone.core.models")
        models.Model = object
        for name in LABELS:
            setattr(package, name, type(name, (SimpleNamespace,), {}))
        core = ModuleType("fiftyone.core")
        package.core, core.models = core, models
        for module in (package, core, models):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    module = importlib.import_module("florence2_client.integrations.fiftyone")

    def made(task=None, classes=None, *, found=FOUND, **options):
        made.finder = Finder(found)
        monkeypatch.setattr("florence2_client.client.open_transport", lambda address: made.finder)
        return module.Florence2Model("grpc://127.0.0.1:1", task, classes, retry_for=0, **options)

    yield made
    sys.modules.pop(module.__name__)


def image(width=100, height=200):
    return np.zeros((height, width, 3), np.uint8)


def kind(label):
    return type(label).__name__


def test_it_is_a_model_of_images_of_any_size(model):
    """FiftyOne makes no batches for a model with ragged batches."""
    made = model("od")
    assert (made.media_type, made.ragged_batches, made.transforms, made.preprocess) == ("image", False, None, False)


def test_boxes_are_detections(model):
    """Boxes are x, y, width, height in fractions of the image."""
    label = model("od").predict(image())
    assert kind(label) == "Detections" and [kind(one) for one in label.detections] == ["Detection"] * 2
    assert [(one.label, one.confidence) for one in label.detections] == [("star", 0.9), ("box", 0.4)]
    assert label.detections[0].bounding_box == pytest.approx([0.1, 0.1, 0.4, 0.2])
    assert [one.label for one in model("region_proposal").predict(image()).detections] == [None]


def test_outlines_are_polylines(model):
    """An object of several polygons is one polyline; points are fractions of the image."""
    label = model("segment", ["a star"]).predict(image())
    assert kind(label) == "Polylines"
    [one] = label.polylines
    assert (one.label, one.confidence, one.closed, one.filled) == ("a star", 0.7, True, True)
    expected = [[(0.1, 0.1), (0.5, 0.1), (0.1, 0.3)], [(0.6, 0.3), (0.9, 0.3), (0.9, 0.45)]]
    assert [np.asarray(points).tolist() for points in one.points] == [
        pytest.approx(np.array(each)) for each in expected
    ]
    [line] = model("ocr_with_region").predict(image()).polylines
    assert line.label == "HELLO" and len(line.points[0]) == 4


def test_phrases_have_classes(model):
    """What is outlined is a detection too, with a mask, so that a field has labels of one kind."""
    label = model(classes={"a star": "star", "a hill": "hill"}).predict(image())
    star, hill = label.detections
    assert (star.label, hill.label) == ("star", "hill")
    assert hill.bounding_box == pytest.approx([0.1, 0.1, 0.2, 0.1])
    assert hill.mask.shape == (20, 20) and hill.mask[2, 2] and not hill.mask[18, 18]


def test_text_is_a_classification(model):
    label = model("caption").predict(image())
    assert (kind(label), label.label, label.confidence) == ("Classification", "a star", pytest.approx(0.8))


def test_a_batch_of_images_of_different_sizes(model):
    """Labels are in order, and the failure of one image is None in its place."""
    made = model("od", concurrency=4)
    images = [image(100 + 10 * number) for number in range(8)]
    images[3] = np.zeros((0, 5, 3), np.uint8)
    labels = made.predict_all(images)
    assert labels[3] is None and [kind(label) for label in labels if label] == ["Detections"] * 7
    widths = [label.detections[0].bounding_box[2] for label in labels if label]
    assert widths == pytest.approx([40 / (100 + 10 * number) for number in (0, 1, 2, 4, 5, 6, 7)])


def test_predict_raises_the_error_of_its_image(model):
    """In a batch such an image has no labels. An absent server ends the batch."""
    with pytest.raises(InvalidImage):
        model("od").predict(b"damaged")
    with pytest.raises(InternalError):
        model("od", found={"od": InternalError("oops")}).predict(image())
    assert model("od", found={"od": InternalError("oops")}).predict_all([image()] * 3) == [None] * 3
    with pytest.raises(ConnectionFailed):
        model("od", found={"od": ConnectionFailed("absent")}).predict_all([image()] * 3)
    for task in ("region_to_category", "find"):
        with pytest.raises(InvalidPrompt):
            model(task)


@pytest.fixture
def dataset(tmp_path):
    """Return a data set of FiftyOne with images of six sizes, the third of which is damaged."""
    fo = pytest.importorskip("fiftyone")
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (100 + number, 100)).save(path)
    paths[2].write_bytes(b"damaged")
    try:
        created = fo.Dataset()
    except Exception as error:  # whatever happens without its MongoDB
        pytest.skip(f"FiftyOne has no database: {error}")
    created.add_samples([fo.Sample(filepath=str(path)) for path in paths])
    yield created
    created.delete()


def test_fiftyone_applies_it(model, dataset):
    """One by one only the damaged image has no label. Thresholds and classes are FiftyOne's."""
    dataset.apply_model(model("od"), label_field="od")
    assert [bool(label) for label in dataset.values("od")] == [True, True, False, True, True, True]
    dataset.apply_model(model("od"), label_field="sure", confidence_thresh=0.5)
    assert dataset.distinct("sure.detections.label") == ["star"]
    dataset.apply_model(model("od"), label_field="boxes", classes=["box"])
    assert dataset.distinct("boxes.detections.label") == ["box"]


def test_fiftyone_applies_it_to_batches(model, dataset):
    """FiftyOne reads the images of a batch itself, and leaves out those of one with a damaged image."""
    made = model("od")
    dataset.apply_model(made, label_field="od", batch_size=3)
    assert [bool(label) for label in dataset.values("od")] == [False] * 3 + [True] * 3
    made.apply_to(dataset, "own", confidence_thresh=0.5)
    assert dataset.values("own.detections.label") == [["star"]] * 2 + [None] + [["star"]] * 3
    made.apply_to(dataset[4:], "part", classes=["box"])
    assert dataset.values("part.detections.label") == [None] * 4 + [["box"]] * 2


@pytest.mark.parametrize("task", ["caption", "ocr_with_region", "segment", "find"])
def test_fiftyone_stores_every_kind_of_label(model, dataset, task):
    classes = ["a star"] if task in ("segment", "find") else None
    dataset.apply_model(model(task, classes), label_field="found")
    assert dataset.exists("found").count() == 5
