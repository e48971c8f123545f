"""`caption_regions`: which pixels are sent for a box, and what comes back for a box that is wrong."""

from __future__ import annotations

import asyncio
import io
import math

import numpy as np
import pytest
from PIL import Image

from florence2.errors import InvalidImage, InvalidOption, InvalidPrompt, Unavailable
from florence2_client import AsyncClient, Client
from tests.unit.client.fake_transport import outputs

GRAY = np.arange(40, dtype=np.uint8)[:, None] * 5 + np.arange(50, dtype=np.uint8)  # [40, 50], each pixel of its own


class Describer:
    """Answers with the size of the image and its first pixel."""

    def infer(self, model, tensors, timeout):
        image = Image.open(io.BytesIO(tensors["IMAGE"][0])).convert("L")
        if image.size == (13, 13):
            raise Unavailable("no room")
        first = image.getpixel((0, 0))
        options = {name: value[0] for name, value in tensors.items() if name not in ("IMAGE", "TASK")}
        task = tensors["TASK"][0].decode()
        return outputs(answer=f"{image.size} from {first} {sorted(options)}", task=task)

    def close(self):
        pass


class AsyncDescriber(Describer):
    async def infer(self, model, tensors, timeout):
        return super().infer(model, tensors, timeout)

    async def close(self):
        pass


@pytest.fixture(params=["threads", "asyncio"])
def caption(request):
    def ask(*args, **options):
        if request.param == "threads":
            with Client(transport=Describer(), retry_for=0) as client:
                return client.caption_regions(*args, **options)

        async def results():
            async with AsyncClient(transport=AsyncDescriber(), retry_for=0) as client:
                return await client.caption_regions(*args, **options)

        return asyncio.run(results())

    return ask


def sent(x1, y1, x2, y2):
    return f"({x2 - x1}, {y2 - y1}) from {GRAY[y1, x1]} []"


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ((5, 6, 25, 16), (5, 6, 25, 16)),
        ([5.2, 6.9, 24.1, 15.5], (5, 6, 25, 16)),  # all pixels that it touches
        (np.array([5, 6, 25, 16], np.float32), (5, 6, 25, 16)),
        ("5,6,25,16", (5, 6, 25, 16)),
        ((-100, -100, 1000, 1000), (0, 0, 50, 40)),  # clamped
        ((-9, 30, 7, 99), (0, 30, 7, 40)),
        ((8, 9, 8, 9), (8, 9, 9, 10)),  # a point is a pixel
        ((49.5, 39.5, 49.6, 39.6), (49, 39, 50, 40)),
    ],
)
def test_a_box_is_cropped_in_pixels(caption, box, crop):
    """Any sequence of four numbers is a box."""
    [result] = caption(GRAY, [box])
    assert (result.task, result.answer.text) == ("<CAPTION>", sent(*crop))


def test_results_are_in_the_order_of_the_boxes_each_with_its_own_error(caption):
    """Wrong boxes are not sent, and a refused request affects no other."""
    boxes = [
        (0, 0, 9, 9),
        (50, 0, 60, 9),
        (9, 9, 0, 0),
        (1, 2, 3),
        (0, 0, 13, 13),
        (0, math.nan, 1, 1),
        (1, 1, 3, 3),
    ]
    results = caption(GRAY, iter(boxes))
    assert [type(result.error) for result in results] == [
        type(None), InvalidPrompt, InvalidPrompt, InvalidPrompt, Unavailable, InvalidPrompt, type(None),
    ]  # fmt: skip
    assert results[0].answer.text == sent(0, 0, 9, 9) and results[-1].answer.text == sent(1, 1, 3, 3)
    assert str(results[1].error) == "the box lies outside the image, which has 50 x 40 pixels"
    assert "with the upper left corner first" in str(results[2].error)
    assert "a box is four numbers x1, y1, x2, y2, not (1, 2, 3)" in str(results[3].error)


def test_results_are_in_the_order_of_the_boxes(caption):
    """Boxes may be an array, as detectors return it. Options go with every request."""
    corners = np.random.default_rng(0).integers(0, 20, (100, 2))
    boxes = np.concatenate([corners, corners + 8], axis=1)
    results = caption(GRAY, boxes, num_beams=1, max_new_tokens=20)
    assert [result.answer.text for result in results] == [
        sent(*box).replace("[]", "['MAX_NEW_TOKENS', 'NUM_BEAMS']") for box in boxes
    ]
    assert caption(GRAY, []) == []


def test_other_tasks_and_images_as_displayed(caption):
    """A rotated photo is cropped as it is displayed."""
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = io.BytesIO()
    Image.fromarray(GRAY[::-1, ::-1]).save(stored, "PNG", exif=exif)
    [result] = caption(stored.getvalue(), [(5, 6, 25, 16)], "ocr")
    assert (result.task, result.answer.text) == ("<OCR>", sent(5, 6, 25, 16))


def test_what_is_wrong_for_all_is_the_error_of_each(caption):
    """The image, or tiles, which captions do not take."""
    assert [type(error) for error in caption("no-such.png", [(0, 0, 1, 1)] * 2).errors] == [InvalidImage] * 2
    assert [type(error) for error in caption(GRAY, [(0, 0, 1, 1)], tiles="auto").errors] == [InvalidOption]
