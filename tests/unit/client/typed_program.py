"""A user's program for test_types.py, which checks it with `mypy --strict` and does not run it."""

from florence2.answers import Boxes, TextAnswer
from florence2_client import AsyncClient, Client, Florence2Error, Options
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


with Client("grpc://127.0.0.1:8001") as client:
    try:
        print(boxes(client, "street.jpg"), many(client, ["street.jpg"]))
    except Florence2Error as error:
        print(error)
