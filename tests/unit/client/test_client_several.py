"""Several tasks, phrases or regions in one call of either client: `ask` and lists."""

from __future__ import annotations

import asyncio
import copy
import inspect
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from florence2.answers import Boxes, BoxesAndPolygons, TextAnswer
from florence2.errors import DeadlineExceeded, InvalidImage, InvalidOption, InvalidPrompt, QueueFull
from florence2_client import AsyncClient, Client, Failure, Prompt, Result, Results
from tests.unit.client.fake_transport import outputs, png
from tests.unit.client.in_flight import CountingTransport

IMAGE = png((200, 100))
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


class Server(CountingTransport):
    """Answer each task in its form, and keep what was sent. `refused`: text or task -> the first errors to raise."""

    def __init__(self, refused: dict[str, list[Exception]] | None = None) -> None:
        super().__init__()
        self.refused, self.sent = refused or {}, []

    def answer(self, tensors, timeout):
        task, text = (tensors[name][0].decode() if name in tensors else "" for name in ("TASK", "TEXT"))
        with self.lock:
            self.sent.append((task, text, tensors["IMAGE"][0], timeout))
            if errors := self.refused.get(text or task):
                raise errors.pop(0)
        boxes = {"bboxes": [[1.0, 2.0, 30.0, 40.0]], "bboxes_labels": ["it"], "scores": [0.5]}
        answer = {
            "<OD>": {"bboxes": [[1.0, 2.0, 30.0, 40.0]], "labels": ["dog"], "scores": [0.5]},
            "<OPEN_VOCABULARY_DETECTION>": boxes | {"polygons": [], "polygons_labels": []},
            "<REFERRING_EXPRESSION_SEGMENTATION>": {"polygons": [[SQUARE]], "labels": [""]},
            "<REGION_TO_SEGMENTATION>": {"polygons": [[SQUARE]], "labels": [""]},
            "<CAPTION_TO_PHRASE_GROUNDING>": {"bboxes": [[1.0, 2.0, 3.0, 4.0]], "labels": ["a word"]},
        }.get(task, f"{text}<loc_0><loc_0><loc_9><loc_9>")
        if "nothing" in text:
            answer = {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []}
        return outputs(task, answer, IMAGE_SIZE=np.array([200, 100], dtype=np.int32))


class AsyncServer(Server):
    async def infer(self, model, tensors, timeout):
        await asyncio.sleep(0)
        return self.answer(tensors, timeout)

    async def close(self):
        pass


@pytest.fixture(params=["threads", "asyncio"])
def call(request):
    """Call a method of either client; return its result and what the server got, in order of the image's requests."""

    def run(method, *arguments, refused=None, retry_for=5.0, **options):
        if request.param == "threads":
            server = Server(refused)
            with Client(transport=server, retry_for=retry_for) as client:
                return getattr(client, method)(*arguments, **options), server

        async def run_async():
            async with AsyncClient(transport=server, retry_for=retry_for) as client:
                return await getattr(client, method)(*arguments, **options)

        server = AsyncServer(refused)
        return asyncio.run(run_async()), server

    return run


def texts(server):
    return sorted((task, text) for task, text, *_ in server.sent)


def test_several_tasks_have_results_in_order(call):
    """Names, tokens, own texts and prompts, each answered in its form."""
    results, server = call(
        "ask", IMAGE, ["caption", "<OD>", ("find", "a dog"), ("classify_region", (1, 2, 3, 4)), Prompt("Where?")]
    )
    assert type(results) is Results and isinstance(results, list)
    assert [type(result.answer) for result in results] == [TextAnswer, Boxes, BoxesAndPolygons, TextAnswer, TextAnswer]
    assert [result.error for result in results] == [None] * 5 and not results.errors
    assert [result.prompt_text for result in results] == [None, None, "a dog", "1.0,2.0,3.0,4.0", None]
    assert len(server.sent) == 5


LISTED = ["ground", "find", "segment", "segment_region", "classify_region", "describe_region", "ocr_region"]
PHRASES = [
    ["a dog", "a red car"],
    ("a dog", "a red car"),
    np.array(["a dog", "a red car"]),
    iter(["a dog", "a red car"]),
]
BOXES = [
    [(1, 2, 3, 4), [5, 6, 7, 8]],
    np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32),
    [np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])],
    ["1,2,3,4", "5.0, 6,7,8"],
    ("<loc_1><loc_2><loc_3><loc_4>", "5,6,7,8"),
]  # fmt: skip


def test_every_method_with_a_text_takes_a_list():
    """LISTED has every method with a parameter named phrase, caption or region."""
    named = {
        name for name, method in inspect.getmembers(Client, inspect.isfunction)
        if {"phrase", "caption", "region"} & set(inspect.signature(method).parameters)
    }  # fmt: skip
    assert named == set(LISTED)


@pytest.mark.parametrize("method", LISTED)
def test_each_item_of_a_list_is_a_request(call, method):
    """The list may have any form that holds several. One phrase or region gives one result, not a list."""
    several, one = (BOXES, (1, 2, 3, 4)) if "region" in method else (PHRASES, "a dog")
    for given in map(copy.copy, several):
        results, server = call(method, IMAGE, given, num_beams=1)
        assert type(results) is Results and len(results) == len(server.sent) == 2
        assert [type(result) for result in results] == [Result, Result]
    assert type(call(method, IMAGE, one)[0]) is Result
    assert call(method, IMAGE, [one])[0][0].prompt_text == call(method, IMAGE, one)[0].prompt_text
    for empty in ([], np.zeros((0, 4))):
        assert call(method, IMAGE, empty)[0] == []


def test_torch_boxes_are_boxes(call):
    """One dimension is a region, two are several."""
    torch = pytest.importorskip("torch")
    assert len(call("ocr_region", IMAGE, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))[0]) == 2
    assert call("ocr_region", IMAGE, torch.tensor([1, 2, 3, 4]))[0].prompt_text == "1.0,2.0,3.0,4.0"


def test_ask_takes_one_text_or_several(call):
    """A string is one task, and four numbers are one region."""
    assert texts(call("ask", IMAGE, "ocr_region", (1, 2, 3, 4))[1]) == [("<REGION_TO_OCR>", "1.0,2.0,3.0,4.0")]
    assert texts(call("ask", IMAGE, ["caption", "find"], ["a", "b"])[1]) == [
        ("<CAPTION>", ""), ("<OPEN_VOCABULARY_DETECTION>", "a"), ("<OPEN_VOCABULARY_DETECTION>", "b"),
    ]  # fmt: skip
    assert len(call("run", IMAGE, "find", ["a", "b"])[0]) == 2


@pytest.mark.parametrize("tasks", [["caption", "od"], ["caption"], ["<OPEN_VOCABULARY_DETECTION>own", ("find", "own")]])
def test_a_text_that_no_task_takes_is_a_mistake(call, tasks):
    with pytest.raises(InvalidPrompt, match="none of the tasks takes the text 'a dog'"):
        call("ask", IMAGE, tasks, ["a dog"])


def test_a_text_goes_only_to_the_tasks_that_take_it(call):
    """A task that lacks its text is sent without one: the server says what is missing."""
    _, server = call("ask", IMAGE, ["find", "ocr_region", "od"], ["a"])
    assert texts(server) == [("<OD>", ""), ("<OPEN_VOCABULARY_DETECTION>", "a"), ("<REGION_TO_OCR>", "")]


def test_phrases_are_the_labels_of_what_they_found(call):
    """Together they are one detection result. Phrases that were not found are in `unmatched`."""
    found, _ = call("find", IMAGE, ["a dog", "nothing", "a red car"])
    assert found.labels == ["a dog", "a red car"] and found.unmatched == ["nothing"]
    merged = found.merged()
    assert merged.answer == BoxesAndPolygons([[1.0, 2.0, 30.0, 40.0]] * 2, ["a dog", "a red car"], [], [], [0.5, 0.5])
    assert merged.labels == found.labels and merged.image_size == (200, 100)
    assert Result.from_dict(json.loads(json.dumps(merged.to_dict()))) == merged
    assert merged.to_coco("a.png") == found.to_coco("a.png")
    assert [category["name"] for category in found.to_coco()["categories"]] == ["a dog", "a red car"]
    assert found.to_yolo(["a red car", "a dog"])[0].startswith("1 ")
    assert found.draw(IMAGE).size == found[0].draw(IMAGE).size


def test_an_error_belongs_to_its_own_request(call):
    """The others are answered. Reading anything of a failed result raises its error."""
    refused = {"a cat": [InvalidPrompt("no cats")]}
    results, _ = call("find", IMAGE, ["a dog", "a cat", "a red car"], refused=refused)
    dog, cat, car = results
    assert (dog.labels, car.labels) == (["it"], ["it"])
    assert isinstance(cat, Failure) and (cat.task, cat.prompt_text) == ("<OPEN_VOCABULARY_DETECTION>", "a cat")
    assert str(cat.error) == "no cats" and results.errors == [cat.error]
    for read in ("answer", "text", "objects", "labels", "final", "image_size"):
        with pytest.raises(InvalidPrompt, match="no cats"):
            getattr(cat, read)
    for read in (
        cat.to_coco,
        cat.to_dict,
        results.merged,
        results.to_coco,
        lambda: cat.draw(IMAGE),
        lambda: results.objects,
    ):
        with pytest.raises(InvalidPrompt, match="no cats"):
            read()
    assert results.succeeded.labels == ["a dog", "a red car"]
    assert not hasattr(cat, "nothing of the kind")
    assert "no cats" in repr(results) and cat == cat and cat != dog
    assert str(pickle.loads(pickle.dumps(cat)).error) == "no cats"


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [("no-such.png", {}, InvalidImage), (b"", {}, InvalidImage), (IMAGE, {"timeout": 0}, InvalidOption),
     (IMAGE, {"timeout": "soon"}, InvalidOption), (IMAGE, {"max_side": 0}, InvalidOption)],
)  # fmt: skip
def test_a_wrong_image_or_option_fails_every_request(call, image, options, error):
    results, server = call("ask", image, ["caption", "captoin", "od"], **options)
    assert [type(one) for one in results.errors] == [error] * 3 and not server.sent
    assert [result.task for result in results] == ["<CAPTION>", "captoin", "<OD>"]


def test_a_mistaken_task_or_region_fails_on_its_own(call):
    results, server = call("ask", IMAGE, ["captoin", "od", ("classify_region", (1, 2, 3))])
    assert "did you mean caption" in str(results[0].error) and "four numbers" in str(results[2].error)
    assert results[1].labels == ["dog"] and len(server.sent) == 1


def test_what_is_no_task_fails_on_its_own(call):
    """Values of another type and tuples of another length are mistakes; a list of a task and its text is not."""
    results, _ = call("ask", IMAGE, [None, ("find", "a", "b"), ["find", "a dog"], 7])
    assert [type(one.error) for one in results] == [InvalidPrompt, InvalidPrompt, type(None), InvalidPrompt]


def test_a_busy_server_is_tried_again(call):
    """Each request has its own retries."""
    refused = {"a dog": [QueueFull("full"), QueueFull("full")], "a cat": [QueueFull("full")]}
    results, server = call("find", IMAGE, ["a dog", "a cat"], refused=refused)
    assert not results.errors and len(server.sent) == 5
    results, _ = call("find", IMAGE, ["a dog", "a cat"], refused={"a dog": [QueueFull("full")]}, retry_for=0)
    assert [type(one) for one in results.errors] == [QueueFull]


def test_the_image_is_read_once(call):
    """This holds for an open file, and for an image that is scaled down for all, and regions with it."""
    reads = []

    class File(io.BytesIO):
        def read(self, *size):
            reads.append(1)
            return super().read(*size)

    _, server = call("find", File(IMAGE), ["a dog", "a cat", "a car"])
    assert len(reads) == 1 and {image for *_, image, _ in server.sent} == {IMAGE}
    results, server = call(
        "ocr_region", Image.new("RGB", (400, 200)), [(40, 40, 80, 80), (0, 0, 400, 200)], max_side=200
    )
    assert len({id(image) for *_, image, _ in server.sent}) == 1
    assert texts(server) == [("<REGION_TO_OCR>", "0.0,0.0,200.0,100.0"), ("<REGION_TO_OCR>", "20.0,20.0,40.0,40.0")]
    assert results[0].prompt_text == "40.0,40.0,80.0,80.0" and results[0].image_size == (400, 200)


def test_the_timeout_is_for_the_whole_call(call):
    """A request that starts later has what is left of it."""
    _, server = call("find", IMAGE, ["a dog"] * 40, timeout=10, num_beams=1)
    limits = [timeout for *_, timeout in server.sent]
    assert len(limits) == 40 and max(limits) <= 10 and min(limits) < max(limits)
    late, _ = call("find", IMAGE, ["a dog", "a cat"], refused={"a cat": [DeadlineExceeded("late")]}, timeout=10)
    assert [type(one) for one in late.errors] == [DeadlineExceeded]


def test_at_most_sixteen_requests_are_in_flight():
    results = Client(transport=(server := Server())).find(IMAGE, [f"thing {number}" for number in range(50)])
    assert [result.prompt_text for result in results] == [f"thing {number}" for number in range(50)]
    assert 1 <= server.most <= 16


def test_an_unknown_option_is_a_type_error(call):
    with pytest.raises(TypeError, match="num_beam"):
        call("find", IMAGE, ["a dog", "a cat"], num_beam=1)
