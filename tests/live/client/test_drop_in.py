"""The replacements for transformers' pipeline and post-processing do what transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from PIL import Image

from florence2.errors import InvalidImage, InvalidOption, InvalidPrompt
from florence2_client.drop_in import pipeline, post_process_generation
from tests.reference import DEMO, processor, truncated

SCENE = Path(__file__).parents[3] / "demo/images/scene.png"
TASK = "image-text-to-text"


@pytest.fixture(scope="module")
def theirs():
    return transformers.pipeline(TASK, model=str(DEMO), dtype="float32")  # as the server of these tests


@pytest.fixture
def ours(server):
    with pipeline(TASK, url=server.grpc_url) as pipe:
        yield pipe


@pytest.mark.parametrize(
    "options",
    [
        {}, {"return_full_text": False}, {"max_new_tokens": 5}, {"generate_kwargs": {"num_beams": 1}},
        {"skip_special_tokens": False},
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["<OD>", "<CAPTION>", "<OCR_WITH_REGION>"])
def test_the_pipeline_answers_like_that_of_transformers(ours, theirs, text, options):
    image = Image.open(SCENE).convert("RGB")
    assert ours(images=image, text=text, **options) == theirs(images=image, text=text, **options)


def test_lists_of_images_and_texts_are_answered_alike(ours, theirs):
    image = Image.open(SCENE).convert("RGB")
    asked = [image, image], ["<OCR>", "<CAPTION>"]
    assert ours(*asked) == theirs(*asked)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pipe: pipe(SCENE, None), InvalidPrompt), (lambda pipe: pipe([SCENE, SCENE], "<OD>"), InvalidPrompt),
        (lambda pipe: pipe(SCENE, "<OD>", generate_kwargs={"do_sample": True}), InvalidOption),
        (lambda pipe: pipe("no-such.png", "<OD>"), InvalidImage),
    ],
)  # fmt: skip
def test_mistakes_are_named(ours, call, error):
    with pytest.raises(error):
        call(ours)


def test_another_pipeline_is_refused():
    with pytest.raises(InvalidOption, match="image-text-to-text"):
        pipeline("text-generation")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("<OD>", "</s><s>star<loc_93><loc_278><loc_459><loc_706>triangle<loc_539><loc_329><loc_883><loc_640></s>"),
        ("<CAPTION>", "</s><s>a purple star</s>"),
        ("<OCR_WITH_REGION>", "HELLO<loc_1><loc_2><loc_30><loc_2><loc_30><loc_40><loc_1><loc_40></s>"),
        ("<CAPTION_TO_PHRASE_GROUNDING>", "a dog<loc_1><loc_2><loc_3><loc_4>it<loc_5><loc_6><loc_7><loc_8></s>"),
        ("<REGION_PROPOSAL>", "<loc_1><loc_2><loc_3><loc_4></s>"),
        ("<REFERRING_EXPRESSION_SEGMENTATION>", "<loc_1><loc_2><loc_30><loc_40><loc_5><loc_60></s>"),
        ("<OPEN_VOCABULARY_DETECTION>", "a dog<loc_1><loc_2><loc_3><loc_4></s>"),
    ],
)
def test_post_processing_is_that_of_the_processor(task, text):
    expected = processor(DEMO).post_process_generation(text, task=task, image_size=(640, 480))
    assert truncated(post_process_generation(text, task, (640, 480))) == expected
