"""The function for CVAT, loaded as cvat-cli loads it, and checked by the SDK's own driver."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from PIL import Image

from florence2.errors import ConnectionFailed, InternalError, InvalidOption, InvalidPrompt, InvalidRequest
from tests.unit.client.finder import Finder, boxes, outlines, places

cvataa = pytest.importorskip("cvat_sdk.auto_annotation")
driver = pytest.importorskip("cvat_sdk.auto_annotation.driver")
models = pytest.importorskip("cvat_sdk.models")
masks = pytest.importorskip("cvat_sdk.masks")
common = pytest.importorskip("cvat_cli._internal.common")
parsers = pytest.importorskip("cvat_cli._internal.parsers")
agent = pytest.importorskip("cvat_cli._internal.agent_driver_detection")

STAR, BOX = [10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]
LEFT, RIGHT = [10.0, 10.0, 40.0, 10.0, 10.0, 40.0], [60.0, 60.0, 90.0, 60.0, 60.0, 90.0]
FOUND = {
    "open_vocabulary_detection: star": places((STAR, 0.9), (BOX, 0.3)),
    "open_vocabulary_detection: a green box": places((BOX, 0.6)),
    "od": boxes(("Star", STAR, 0.9), ("box", BOX, 0.4), ("dog", BOX, 0.8)),
    "referring_expression_segmentation: star": outlines(([LEFT, RIGHT], 0.7), ([[1.0, 1.0, 2.0, 2.0]], 0.9)),
    "ocr_with_region": {"quad_boxes": [[10, 10, 50, 12, 50, 30, 10, 28]], "labels": ["HELLO"], "confidences": [0.9]},
    "dense_region_caption": boxes(("a purple star", STAR, 0.9)),
    "caption": "a star",
}


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads ours with parameters as on cvat-cli's command line, and a transport."""

    def loaded(*parameters, found=FOUND):
        monkeypatch.setattr("florence2_client.client.open_transport", lambda address: Finder(found))
        values = dict(map(parsers.parse_function_parameter, ("retry_for=float:0", *parameters)))
        return common.FunctionLoader("florence2_client.integrations.cvat", None, values).load()

    return loaded


class Uploads(SimpleNamespace):
    """A CVAT client that keeps what would be uploaded."""

    logger = logging.getLogger("cvat")

    def __init__(self):
        super().__init__(tasks=SimpleNamespace(api=self), shapes=None, tags=None)

    def partial_update_annotations(self, action, task_id, *, patched_labeled_data_request):
        self.tags, self.shapes = patched_labeled_data_request.tags, patched_labeled_data_request.shapes


@pytest.fixture
def annotate(monkeypatch):
    """Return a function that runs the SDK's driver on a CVAT task with these labels and images."""

    def annotated(function, labels, images=1, **options):
        names = {name: number for number, name in enumerate(labels, 100)}
        attribute = SimpleNamespace(
            id=7, name="text", input_type=models.InputTypeEnum("text"), values=[], default_value=""
        )
        described = [
            SimpleNamespace(id=number, name=name, type=labels[name], attributes=[attribute], sublabels=[])
            for name, number in names.items()
        ]
        if isinstance(images, int):
            images = [Image.new("RGB", (100, 100))] * images
        samples = [
            SimpleNamespace(frame_index=n, frame_name=f"{n}.png", media=SimpleNamespace(load_image=lambda one=one: one))
            for n, one in enumerate(images)
        ]
        monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: SimpleNamespace(labels=described, samples=samples))
        client = Uploads()
        driver.annotate_task(client, 1, function, **options)
        names = {number: name for name, number in names.items()}
        for each in [*client.shapes, *client.tags]:
            assert each.source == "auto"
        return [(names[each.label_id], each.type.value, each.points) for each in client.shapes], client

    return annotated


def test_phrases_become_rectangles(load, annotate):
    """Labels are phrases, or have one; each shape has its confidence."""
    shapes, client = annotate(load("labels=str:star,a green box=box"), {"star": "rectangle", "box": "any"})
    assert shapes == [("star", "rectangle", STAR), ("star", "rectangle", BOX), ("box", "rectangle", BOX)]
    assert [shape.score for shape in client.shapes] == pytest.approx([0.9, 0.3, 0.6])


def test_labels_without_an_equal_in_the_task_are_skipped_or_mapped(load, annotate):
    """Others are skipped, or mapped."""
    labels = {"star": "any", "box": "any"}
    assert [name for name, *_ in annotate(load("task=str:od", "labels=str:star"), labels)[0]] == ["star"]
    shapes, _ = annotate(load("task=str:od", "labels=str:star", "unknown=str:box"), labels)
    assert [name for name, *_ in shapes] == ["star", "box", "box"]


def test_the_threshold_of_cvat_goes_before_our_own(load, annotate):
    function = load("labels=str:star", "min_confidence=float:0.5")
    for threshold, count in ((None, 1), (0.0, 2), (0.3, 2), (0.31, 1), (0.95, 0)):
        assert len(annotate(function, {"star": "any"}, conf_threshold=threshold)[0]) == count


def test_polygons_of_one_object_are_a_group(load, annotate):
    """An outline without area is no shape."""
    shapes, client = annotate(load("task=str:segment", "labels=str:star"), {"star": "polygon"}, images=2)
    assert shapes == [("star", "polygon", LEFT), ("star", "polygon", RIGHT)] * 2
    groups = [shape.group for shape in client.shapes]
    assert groups[0] == groups[1] != groups[2] == groups[3] and min(groups) > 0


def test_an_object_has_one_mask(load, annotate):
    """CVAT may ask for polygons instead."""
    function = load("task=str:segment", "labels=str:star", "shape=str:mask")
    [(_, kind, points)], _ = annotate(function, {"star": "mask"})
    mask = masks.decode_mask(points, image_width=100, image_height=100)
    assert kind == "mask" and mask[12, 12] and mask[62, 62] and not mask[45, 45]
    shapes, _ = annotate(function, {"star": "polygon"}, conv_mask_to_poly=True)
    assert [kind for _, kind, _ in shapes] == ["polygon", "polygon"]


@pytest.mark.parametrize("shape", ["rectangle", "polygon", "mask"])
@pytest.mark.parametrize("task", ["open_vocabulary_detection", "segment", "od", "ocr_with_region"])
def test_every_answer_has_every_shape(load, annotate, task, shape):
    shapes, _ = annotate(load(f"task=str:{task}", "labels=str:star", f"shape=str:{shape}"), {"star": shape})
    assert shapes and {kind for _, kind, _ in shapes} == {shape}


def test_texts_are_attributes(load, annotate):
    """Lines of text are polygons, captions are tags."""
    shapes, client = annotate(load("task=str:ocr_with_region", "labels=str:text"), {"text": "any"})
    assert shapes == [("text", "polygon", [10, 10, 50, 12, 50, 30, 10, 28])]
    assert [(each.spec_id, each.value) for each in client.shapes[0].attributes] == [(7, "HELLO")]
    _, client = annotate(load("task=str:dense_region_caption", "labels=str:thing"), {"thing": "any"})
    assert client.shapes[0].attributes[0].value == "a purple star"
    function = load("task=str:caption", "labels=str:scene")
    for threshold, values in ((0.7, ["a star"]), (0.9, [])):
        shapes, client = annotate(function, {"scene": "tag"}, conf_threshold=threshold)
        assert shapes == [] and [tag.attributes[0].value for tag in client.tags] == values


def test_labels_that_the_cvat_task_lacks(load, annotate):
    function = load("labels=str:star,a green box=box")
    with pytest.raises(cvataa.BadFunctionError, match="label 'box' is not in dataset"):
        annotate(function, {"star": "any"})
    assert len(annotate(function, {"star": "any"}, allow_unmatched_labels=True)[0]) == 2


def test_an_agent_registers_the_labels(load):
    """`cvat-cli function create-native` sends them to CVAT."""
    spec = load("task=str:ocr_with_region", "labels=str:text").spec
    assert agent.AgentDetectionFunctionDriver.get_remote_function_fields(spec) == {
        "labels_v2": [
            {
                "name": "text", "type": "polygon",
                "attributes": [{"name": "text", "input_type": models.InputTypeEnum("text"), "values": []}],
            }
        ]
    }  # fmt: skip


def test_one_images_failure_leaves_the_others(load, annotate, caplog):
    class Damaged(Image.Image):
        def save(self, *_, **__):
            raise OSError("truncated")

    images = [Image.new("RGB", (100, 100)), Damaged(), Image.new("RGB", (100, 100))]
    shapes, _ = annotate(load("labels=str:star"), {"star": "any"}, images=images)
    assert len(shapes) == 4 and "1.png is left out" in caplog.text
    failing = FOUND | {"open_vocabulary_detection: star": InternalError("oops")}
    assert annotate(load("labels=str:star", found=failing), {"star": "any"}, images=3)[0] == []


@pytest.mark.parametrize("error", [ConnectionFailed("absent"), InvalidRequest("no such option")])
def test_failures_of_all_images_end_it(load, annotate, error):
    function = load("labels=str:star", found={"open_vocabulary_detection: star": error})
    with pytest.raises(type(error)):
        annotate(function, {"star": "any"}, images=3)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ([], InvalidPrompt), (["task=str:od"], InvalidPrompt),
        (["labels=str:star", "shape=str:cuboid"], InvalidOption),
        (["labels=str:star", "task=str:region_to_category"], InvalidPrompt),
        (["labels=str:star", "url=str:ftp://x"], InvalidRequest),
        (["labels=str:star", "min_confidence=float:nan"], InvalidOption),
        (["labels=str:star", "num_beam=int:1"], InvalidOption),
    ],
)  # fmt: skip
def test_mistakes_are_named_when_it_is_loaded(load, parameters, error):
    with pytest.raises(error):
        load(*parameters)
