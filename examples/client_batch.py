"""Caption all images of a folder: python client_batch.py FOLDER [URL]."""

import sys
from pathlib import Path

from florence2_client import Client

images = sorted(Path(sys.argv[1]).iterdir())
url = sys.argv[2] if len(sys.argv) > 2 else "grpc://127.0.0.1:8001"

with Client(url) as client:
    replies = client.run_many(((image, "caption") for image in images), concurrency=8)
    for image, reply in zip(images, replies, strict=True):
        # A file that is not an image gets an error and does not stop the others.
        print(f"{image.name}: {reply.error or reply.unwrap().text}")
