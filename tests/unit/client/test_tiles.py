"""Requests with tiles through both clients, to a server that finds colored rectangles in the pixels that it gets."""

from __future__ import annotations

import asyncio
import io

import pytest
from PIL import Image, ImageDraw

from florence2.answers import TextAnswer
from florence2.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidImage,
    InvalidOption,
    InvalidRequest,
    Unavailable,
)
from florence2_client import AsyncClient, Client, Prompt, Tiles
from florence2_client.tiles import TILED, TILES_IN_FLIGHT
from florence2_client.tiling import tile_boxes
from tests.unit.client.rectangles import COLORS, AsyncFinder, Finder


@pytest.fixture(params=["threads", "asyncio"])
def run(request):
    """Runs a task with either client; returns the result and the server."""

    def ask(*args, fails=lambda size: None, descriptions=({},), retry_for=0, **options):
        finder = (Finder if request.param == "threads" else AsyncFinder)(fails)
        finder.descriptions = list(descriptions)
        if request.param == "threads":
            with Client(transport=finder, retry_for=retry_for) as client:
                return client.run(*args, **options), finder

        async def answer():
            async with AsyncClient(transport=finder, retry_for=retry_for) as client:
                return await client.run(*args, **options)

        return asyncio.run(answer()), finder

    return ask


def drawn(size, **boxes):
    """A white image with a rectangle of each color; the right and lower edges are not part of it."""
    image = Image.new("RGB", size, "white")
    for color, (x1, y1, x2, y2) in boxes.items():
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLORS[color])
    return image


SCENE = {"red": (100, 100, 112, 108), "green": (900, 20, 2000, 1400), "blue": (2390, 1590, 2400, 1600)}


def test_small_things_in_a_large_image_are_found(run):
    """The whole image shows only the large one. All boxes are in pixels of the whole image, with their scores."""
    image = drawn((2400, 1600), **SCENE)
    assert run(image, "od")[0].labels == ["green"]
    result, finder = run(image, "od", tiles="auto", num_beams=1)
    assert {found.label: found.box for found in result.objects} == SCENE
    assert result.answer.scores == [0.25] * 3
    assert (result.task, result.image_size, result.finish_reason) == ("<OD>", (2400, 1600), "stop")
    assert (result.num_tokens, result.score) == (5 * len(finder.sizes), -0.5)
    assert result.read_as("boxes").labels == result.labels
    assert len(finder.sizes) == len(tile_boxes((2400, 1600), "auto")) + 1
    assert 1 < finder.most <= TILES_IN_FLIGHT


@pytest.mark.parametrize("task", TILED)
def test_all_tasks_that_look_for_everything_take_tiles(run, task):
    """OCR is sent as OCR with regions, because only places tell the lines of overlapping tiles apart."""
    text = "a square" if "VOCABULARY" in task else None
    result, finder = run(drawn((1600, 900), red=(9, 9, 99, 99), blue=(800, 300, 860, 330)), task, text, tiles=(2, 1))
    assert result.task == task and len(finder.sizes) == 3
    assert set(finder.tasks) == {"<OCR_WITH_REGION>" if task == "<OCR>" else task}
    if task == "<OCR>":
        assert result.answer == TextAnswer("red\nblue") and result.text == "red\nblue"
    else:
        assert [found.box for found in result.objects] == [(9, 9, 99, 99), (800, 300, 860, 330)]


@pytest.mark.parametrize(
    ("task", "text", "reason"),
    [
        ("caption", None, "<CAPTION> describes the whole image, of which a tile says nothing; tiles are for od,"),
        ("more_detailed_caption", None, "<MORE_DETAILED_CAPTION> describes the whole image"),
        ("ground", "a dog", "<CAPTION_TO_PHRASE_GROUNDING> would find its text in every tile"),
        ("segment", "a dog", "<REFERRING_EXPRESSION_SEGMENTATION> would find its text in every tile"),
        ("region_to_ocr", "1,2,3,4", "<REGION_TO_OCR> is about one region; to look closer, send a crop of it"),
        (Prompt("what is this?"), None, "the answers to a prompt of your own cannot be merged"),
    ],
)
def test_other_tasks_refuse_tiles_with_one_sentence(run, task, text, reason):
    """The image is not even read, so that the answer is the same for small images."""
    with pytest.raises(InvalidOption) as caught:
        run("no-such-file.png", task, text, tiles="auto")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("tiles", "size", "requests"),
    [
        ("auto", (1152, 800), 1),  # the whole image shows enough
        ((1, 1), (300, 300), 1),
        (400, (300, 300), 1),
        ((2, 3), (300, 300), 7),
        ("2x3", (300, 300), 7),
        ((9, 9), (3, 1), 3),  # not more tiles than pixels
        (100, (180, 100), 3),
        ("100", (180, 100), 3),
        (Tiles(100, overlap=0.5), (200, 100), 4),
    ],
)
def test_tiles_can_be_given_in_several_forms(run, tiles, size, requests):
    """These are columns and rows, a size, text, and a size with an overlap."""
    assert len(run(drawn(size), "od", tiles=tiles)[1].sizes) == requests


@pytest.mark.parametrize(
    "tiles", [0, -5, 2.5, True, "", "many", "3x", "0x2", (0, 1), (1, 2, 3), ("a", "b"), [], b"auto", {"size": 3}]
)
def test_other_forms_of_tiles_are_refused(run, tiles):
    """The message says what they may be."""
    with pytest.raises(InvalidOption, match="tiles must be 'auto', the size of a tile in pixels such as 640, or"):
        run(drawn((9, 9)), "od", tiles=tiles)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 1.5}, {"size": 9, "overlap": 1}, {"size": 9, "overlap": -0.1}])
def test_tiles_must_make_sense(wrong):
    with pytest.raises(InvalidOption, match="of tiles must be"):
        Tiles(**wrong)


def test_tiles_exclude_scaling_and_streams(run):
    """There is also a limit on their number."""
    with pytest.raises(InvalidOption, match="tiles and max_side exclude each other"):
        run(drawn((2000, 2000)), "od", tiles="auto", max_side=800)
    with pytest.raises(InvalidOption, match=r"tiles would be 15,625; at most 4,096"):
        run(drawn((1000, 1000)), "od", tiles=10)
    with pytest.raises(InvalidOption, match="cannot be streamed"), Client(transport=Finder()) as client:
        next(client.stream(drawn((9, 9)), "od", tiles="auto"))


@pytest.mark.parametrize(
    ("described", "size", "tiles"),
    [
        ("64x64", (200, 130), [(64, 64)] * 12),
        ("64x64", (96, 90), []),  # the whole image shows enough
        ("1024x1024", (1500, 1100), []),
        ("1024x1024", (1600, 1000), [(1024, 1000)] * 2),
        ("64x128", (200, 64), [(64, 64)] * 4),  # of both sides, the smaller one
        *((other, (1600, 700), [(768, 700)] * 3) for other in ("768x768", "0x0", "nan", "64", "-1x-1", "999999x1")),
    ],
)
def test_automatic_tiles_are_what_the_model_sees(run, described, size, tiles):
    """Or 768 pixels, which the published checkpoints see, if the server does not tell."""
    _, finder = run(drawn(size), "od", tiles="auto", descriptions=[{"image_size": described}])
    assert sorted(finder.sizes) == sorted([size, *tiles])
    assert [model for model, _ in finder.described] == ["florence2_ensemble"]


def test_a_server_that_hides_its_models_has_published_ones(run):
    _, finder = run(drawn((1600, 700)), "od", tiles="auto", descriptions=[InvalidRequest("it is not shown")])
    assert len(finder.sizes) == 4


def test_a_server_that_comes_back_is_asked_again(run):
    """Within `retry_for`, and within the timeout of the request."""
    absent = [ConnectionFailed("absent")] * 2
    _, finder = run(drawn((96, 90)), "od", tiles="auto", retry_for=60, descriptions=[*absent, {"image_size": "32x32"}])
    assert len(finder.described) == 3 and len(finder.sizes) > 1
    with pytest.raises(ConnectionFailed):
        run(drawn((96, 90)), "od", tiles="auto", descriptions=absent)


def test_only_automatic_tiles_need_to_know_what_the_model_sees(run):
    """And once is enough."""
    assert run(drawn((300, 300)), "od", tiles=(2, 2))[1].described == []
    finder = Finder()
    with Client(transport=finder) as client:
        for _ in range(3):
            client.detect(drawn((90, 90)), tiles="auto", timeout=5)
    [(_, timeout)] = finder.described
    assert timeout == pytest.approx(5, abs=1)
    for mistake in ({"max_side": 5}, {"timeout": -1}):
        with pytest.raises(InvalidOption):
            run(drawn((90, 90)), "od", tiles="auto", descriptions=[ConnectionFailed("absent")], **mistake)


def test_a_rotated_photo_is_cut_as_it_is_displayed(run):
    """The camera stored it lying on its side; boxes refer to the upright image."""
    upright = drawn((1000, 1500), red=(900, 1400, 912, 1412))
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it clockwise
    stored = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stored, "PNG", exif=exif)
    result, _ = run(stored.getvalue(), "od", tiles="auto")
    assert (result.image_size, result.objects[0].box) == ((1000, 1500), (900, 1400, 912, 1412))


def test_an_error_of_one_tile_is_the_error_of_the_request(run):
    """A merged answer without it would look complete. The rest is not sent."""
    fails = lambda size: Unavailable("no room") if size != (2400, 1600) else None  # noqa: E731
    with pytest.raises(Unavailable, match="no room"):
        run(drawn((2400, 1600)), "od", tiles="auto", fails=fails)
    with pytest.raises(InvalidImage, match=r"damaged|not an image|format"):
        run(b"no image at all", "od", tiles="auto")


def test_all_tiles_share_one_timeout(run):
    """Each request is given what is left of it."""
    _, finder = run(drawn((300, 300)), "od", tiles=(3, 3), timeout=1000)
    assert len(finder.timeouts) == 10 and all(990 < timeout <= 1000 for timeout in finder.timeouts)
    late = lambda size: DeadlineExceeded("too late")  # noqa: E731
    with pytest.raises(DeadlineExceeded):
        run(drawn((300, 300)), "od", tiles=(3, 3), timeout=0.5, fails=late)


def test_run_many_takes_tiles_too(run):
    """For all questions or for one."""
    with Client(transport=Finder()) as client:
        image = drawn((1600, 900), red=(9, 9, 99, 99))
        replies = list(client.run_many([(image, "od"), (image, "caption")], tiles=(2, 2)))
    assert replies[0].unwrap().labels == ["red"]
    assert isinstance(replies[1].error, InvalidOption)


def test_ask_takes_tiles_too():
    """The image is encoded once, and a task that takes no tiles has its own error."""
    with Client(transport=Finder()) as client:
        objects, caption, lines = client.ask(
            drawn((1600, 900), red=(9, 9, 99, 99)), ["od", "caption", "ocr"], tiles=(2, 2)
        )
        [scaled] = client.ask(drawn((90, 90)), ["od"], tiles=(2, 2), max_side=50)
    assert objects.labels == ["red"] and lines.answer.text == "red"
    assert isinstance(caption.error, InvalidOption)
    assert "tiles and max_side exclude each other" in str(scaled.error)
