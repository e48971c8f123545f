"""Run several tasks on an image at once: python client_async.py IMAGE [URL]."""

import asyncio
import sys

from florence2_client import AsyncClient


async def main(image: str, url: str) -> None:
    """Send three requests together; the server works on all of them at the same time."""
    async with AsyncClient(url) as client:
        caption, text, objects = await asyncio.gather(client.caption(image), client.ocr(image), client.detect(image))
    print("caption:", caption.answer.text)
    print("text:", text.answer.text)
    print("objects:", ", ".join(objects.answer.labels))


asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "grpc://127.0.0.1:8001"))
