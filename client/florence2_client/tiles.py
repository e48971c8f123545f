"""Tiles: send a large image in overlapping parts and as a whole, and merge the answers into one.

A model sees a fixed number of pixels of any image, 768 x 768 if it is one of those published, so what is small in a
large image is lost unless a part of the image is sent by itself. Both clients make a `Tiled` of a request with `tiles`,
send its questions in flight together, and return what it merges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

from florence2.answers import Answer, Quads, TextAnswer
from florence2.errors import InvalidOption
from florence2.tasks import TASKS, TaskInput
from florence2_client.exchange import Question, shared_timeout
from florence2_client.images import EncodedImage, ImageLike, decoded_image, encoded_bytes
from florence2_client.merging import View, generated_text, merge
from florence2_client.request import Options, Region, require_timeout
from florence2_client.result import Result
from florence2_client.tasks import ParsedTask, Prompt, parse_task
from florence2_client.tiling import MODEL_SIDE, parse_tiles, tile_boxes

TILES_IN_FLIGHT = 8  # requests of one image: the decoder has room for as many of three beams

# The tasks that look for everything in the image; each is answered in a tile as in an image of its own.
TILED = (
    "<OD>",
    "<DENSE_REGION_CAPTION>",
    "<REGION_PROPOSAL>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<OCR>",
    "<OCR_WITH_REGION>",
)
NAMES = ", ".join(TASKS[token].name for token in TILED)
BY_LABEL = ("<OD>", "<OPEN_VOCABULARY_DETECTION>")  # whose labels are names, and not sentences
LINES = "<OCR_WITH_REGION>"  # what <OCR> sends: only with places can lines be told apart


class Tiled:
    """One request that is sent as several: the whole image, and each of its tiles."""

    def __init__(self, image: bytes, upright: Image.Image, boxes: Iterable[tuple[int, int, int, int]],
                 task: ParsedTask, text: Region | None, options: Options) -> None:  # fmt: skip
        assert task.known is not None
        self._image = image
        self._upright = upright
        self._token = task.known.token
        self._sent = Prompt(task.sent.replace("<OCR>", LINES))
        self._text = text
        self._options = options
        self._left = shared_timeout(options)
        self._boxes = [(0, 0, *upright.size), *boxes]

    @classmethod
    def plan(
        cls, image: ImageLike, task: str, text: Region | None, options: Options, model_side: int = MODEL_SIDE
    ) -> Tiled | None:
        """Read the image and choose its tiles; return None if the whole image is enough.

        `model_side`: what the model sees, in pixels. Raise what `require_tiles` raises, and InvalidImage if the image
        cannot be decoded.
        """
        tiles, parsed = require_tiles(image, task, options)
        encoded = encoded_bytes(image)
        upright = decoded_image(encoded)
        boxes = tile_boxes(upright.size, tiles, model_side)
        given: Options = {**options, "tiles": None}
        return cls(encoded, upright, boxes, parsed, text, given) if boxes else None

    def questions(self) -> Iterator[Question]:
        """Yield the whole image first. A tile is cut out when its turn comes; all share one timeout."""
        for number, box in enumerate(self._boxes):
            image: ImageLike = self._upright.crop(box) if number else self._image
            yield Question(image, self._sent, self._text, number, {**self._options, **self._left()})

    def merged(self, results: Mapping[int, Result[Any]]) -> Result[Any]:
        """Return one result in pixels of the whole image, from those of all questions by their keys."""
        size = self._upright.size
        views = [View(box, results[number].answer, whole=number == 0) for number, box in enumerate(self._boxes)]
        answer: Answer = merge(views, by_label=self._token in BY_LABEL)
        text = generated_text(answer, size)
        if self._token == "<OCR>" and isinstance(answer, Quads):
            answer = TextAnswer("\n".join(answer.labels))
            text = answer.text
        return Result(
            self._token,
            answer,
            text,
            "length" if any(result.finish_reason == "length" for result in results.values()) else "stop",
            sum(result.num_tokens for result in results.values()),
            sum(result.score for result in results.values()) / len(results),
            size,
            results[0].prompt_text,
        )


def require_tiles(image: ImageLike, task: str, options: Options) -> tuple[Any, ParsedTask]:
    """Return the tiles that a request asks for, and its task.

    Raise InvalidOption if they have no known form, the task cannot be answered in tiles, or an option excludes them.
    """
    tiles = parse_tiles(options["tiles"])
    parsed = require_tileable(task)
    require_timeout(options.get("timeout"))
    if options.get("max_side") is not None or (isinstance(image, EncodedImage) and image.original_size):
        raise InvalidOption("tiles and max_side exclude each other: tiles show the model every pixel")
    return tiles, parsed


def require_tileable(task: str) -> ParsedTask:
    """Return a task that can be answered in tiles. Raise InvalidOption with the reason if it cannot."""
    # The server reads a task's own token as the task, even where it is marked as a prompt.
    is_token = isinstance(task, Prompt) and f"{task.strip().partition('>')[0]}>" in TASKS
    parsed = parse_task(str(task) if is_token else task)
    if parsed.known is None:
        raise InvalidOption(f"tiles are for {NAMES}; the answers to a prompt of your own cannot be merged")
    token = parsed.known.token
    if token in TILED:
        return parsed
    if parsed.known.input is TaskInput.REGION:
        reason = f"{token} is about one region; to look closer, send a crop of it"
    elif parsed.known.input is TaskInput.TEXT:
        reason = f"{token} would find its text in every tile, since it is about the whole image"
    else:
        reason = f"{token} describes the whole image, of which a tile says nothing"
    raise InvalidOption(f"{reason}; tiles are for {NAMES}")
