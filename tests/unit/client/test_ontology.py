"""What is looked for, and what it is called; and which failures cost only their own image."""

from __future__ import annotations

import pytest
from PIL import Image

from florence2.errors import ConnectionFailed, InternalError, InvalidOption, InvalidPrompt
from florence2_client import Client
from florence2_client.ontology import MOST_FAILURES_IN_A_ROW, Ontology, Tolerance, ask_each
from florence2_client.results import Results, failure
from tests.unit.client.finder import Finder, boxes, places

IMAGE = Image.new("RGB", (100, 100))
BOX, OTHER = [10, 10, 50, 50], [60, 60, 90, 90]
FIND = "<OPEN_VOCABULARY_DETECTION>"


@pytest.mark.parametrize(
    ("classes", "phrases"),
    [
        (["car", "person"], {"car": "car", "person": "person"}),
        ({"a red car": "car"}, {"a red car": "car"}),
        ("car, person", {"car": "car", "person": "person"}),
        ("a red car = car,person,", {"a red car": "car", "person": "person"}),
        ('["car, red", "dog"]', {"car, red": "car, red", "dog": "dog"}), ('{"a red car": "car"}', {"a red car": "car"}),
        (None, {}), ("", {}),
    ],
)  # fmt: skip
def test_classes_may_have_any_form(classes, phrases):
    assert Ontology.of("find" if phrases else None, classes).phrases == phrases


@pytest.mark.parametrize(
    ("task", "classes", "prompts"),
    [
        (None, ["car", "dog"], [(FIND, "car"), (FIND, "dog")]),
        (None, None, [("<OD>", None)]),
        ("od", ["car", "dog"], [("<OD>", None)]),
        ("segment", ["car"], [("<REFERRING_EXPRESSION_SEGMENTATION>", "car")]),
        ("<SHELVES>", ["car", "dog"], [("<SHELVES>", None)]),
    ],
)
def test_a_request_for_each_phrase_or_one_for_all(task, classes, prompts):
    assert Ontology.of(task, classes).prompts == prompts


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        ("find", None), ("region_to_category", ["car"]), ("<OD>car", None), ("captoin", None), ("od", [""]),
        ("od", [7]), ("od", "[car"), ("od", {"car": None}),
        ("ocr_with_region", ["text", "line"]), ("caption", ["a", "b"]),
        ("<OPEN_VOCABULARY_DETECTION>a car", ["car"]),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_whole_images(task, classes):
    with pytest.raises(InvalidPrompt):
        Ontology.of(task, classes)


def found(ontology, **answers):
    with Client(transport=Finder(answers)) as client:
        [results] = ask_each(client, [IMAGE], ontology.prompts)
        return [(name, found.label) for name, found in ontology.objects(results)]


def test_labels_of_the_model_become_classes():
    """Case does not count, and others are left out, or of one class of their own."""
    answer = boxes(("Car", BOX, 0.9), ("dog", OTHER, 0.8))
    assert found(Ontology.of("od", {"car": "vehicle"}), od=answer) == [("vehicle", "Car")]
    assert found(Ontology.of("od", {"car": "vehicle"}, "rest"), od=answer) == [("vehicle", "Car"), ("rest", "dog")]
    assert found(Ontology.of("od"), od=answer) == [("Car", "Car"), ("dog", "dog")]
    assert found(Ontology.of("od", None, "thing"), od=answer) == [("thing", "Car"), ("thing", "dog")]
    assert Ontology.of("od", ["car"], "rest").classes == ["car", "rest"]
    assert Ontology.of("find", {"a car": "car", "a van": "car"}).classes == ["car"]


def test_all_that_a_phrase_finds_is_of_its_class():
    answers = {"open_vocabulary_detection: a van": places((BOX, 0.9), (OTHER, 0.2))}
    assert [name for name, _ in found(Ontology.of(None, {"a dog": "dog", "a van": "car"}), **answers)] == ["car", "car"]


def test_what_else_a_phrase_mentions_is_not_of_its_class():
    """Grounding finds every phrase of a caption."""
    answers = {"caption_to_phrase_grounding: a star on a box": boxes(("a star", BOX, 0.9), ("a box", OTHER, 0.9))}
    assert found(Ontology.of("ground", {"a star on a box": "star"}), **answers) == [("star", "a star")]


def test_labels_that_are_text_are_of_the_only_class():
    answers = {"dense_region_caption": boxes(("a red car", BOX, 0.9)), "region_proposal": boxes(("", BOX, 0.9))}
    assert found(Ontology.of("dense_region_caption", ["thing"]), **answers) == [("thing", "a red car")]
    assert found(Ontology.of("region_proposal", ["thing"]), **answers) == [("thing", "")]


def test_requests_of_many_images_are_in_flight():
    """Each image's results come together and in order, also those of one that is damaged."""
    finder = Finder({"open_vocabulary_detection: a": places((BOX, 0.9))})
    images = [IMAGE, b"damaged", "no-such.png", IMAGE]
    with Client(transport=finder) as client:
        answered = list(ask_each(client, images, Ontology.of("find", ["a", "b"]).prompts, concurrency=8))
    assert [[len(result.objects) if not result.error else "error" for result in each] for each in answered] == [
        [1, 0], ["error", "error"], ["error", "error"], [1, 0],
    ]  # fmt: skip


def results(error):
    return Results([failure("od", None, error)])


def test_errors_that_concern_every_image_end_the_run():
    """These are mistakes in the request and an absent server. Others end it if they persist."""
    for error in (InvalidOption("beams"), ConnectionFailed("absent")):
        with pytest.raises(type(error)):
            Tolerance().settle("a.png", results(error))
    tolerance = Tolerance()
    for _ in range(MOST_FAILURES_IN_A_ROW - 1):
        assert not tolerance.settle("a.png", results(InternalError("oops")))
    assert tolerance.settle("a.png", Results())
    for _ in range(MOST_FAILURES_IN_A_ROW - 1):
        assert not tolerance.settle("a.png", results(InternalError("oops")))
    with pytest.raises(InternalError):
        tolerance.settle("a.png", results(InternalError("oops")))
