"""A user's program for test_types.py, which checks it with `mypy --strict` and does not run it."""

from florence2.answers import Boxes, BoxesAndPolygons, TextAnswer
from florence2_client import AsyncClient, Client, Florence2Error, Options, Result, Results
from florence2_client.objects import Found


def boxes(client: Client, image: str) -> list[tuple[str, float]]:
    result = client.detect(image, num_beams=1, timeout=30)
    answer: Boxes = result.answer
    found: list[Found] = result.objects
    print(found[0].label, result.finish_reason, result.image_size[0])
    scores = answer.scores or [0.0] * len(answer.bboxes)
    return list(zip(answer.labels, scores, strict=True))


async def caption(client: AsyncClient, image: bytes) -> str:
    result = await client.caption(image)
    answer: TextAnswer = result.answer
    return answer.text


def many(client: Client, images: list[str]) -> dict[str, str]:
    options: Options = {"num_beams": 1}
    replies = client.run_many([(image, "caption") for image in images], **options)
    return {image: reply.unwrap().text for image, reply in zip(images, replies, strict=True)}


def several(client: Client, image: str, regions: list[tuple[int, int, int, int]]) -> list[str]:
    found: Results[BoxesAndPolygons] = client.find(image, ["a dog", "a red car"])
    one: Result[BoxesAndPolygons] = client.find(image, "a dog")
    merged: BoxesAndPolygons = found.merged().answer
    texts: Results[TextAnswer] = client.classify_region(image, regions)
    tasks = client.ask(image, ["caption", ("find", "a dog")], timeout=30)
    error: Florence2Error | None = tasks[0].error
    boxes = client.ocr_region(image, one.answer.bboxes)
    region: Result[TextAnswer] = client.ocr_region(image, one.answer.bboxes[0])
    print(
        merged.bboxes_labels, error, boxes[0].answer.text, region.answer.text, client.run(image, "find", ["a"]).labels
    )
    return [result.answer.text for result in texts.succeeded]


async def several_async(client: AsyncClient, image: str) -> list[str]:
    found = await client.segment(image, ["a dog", "a red car"])
    captions = await client.describe_region(image, [(1, 2, 3, 4), (5, 6, 7, 8)])
    both = await client.ask(image, ["caption", "od"])
    return [*found.labels, *(result.answer.text for result in captions), *both.labels]


with Client("grpc://127.0.0.1:8001") as client:
    try:
        print(boxes(client, "street.jpg"), many(client, ["street.jpg"]))
    except Florence2Error as error:
        print(error)
