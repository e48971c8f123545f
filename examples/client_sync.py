"""Detect the objects in an image and draw them: python client_sync.py IMAGE [URL]."""

import sys

from florence2_client import Client

image = sys.argv[1]
url = sys.argv[2] if len(sys.argv) > 2 else "grpc://127.0.0.1:8001"  # or http://127.0.0.1:8000

with Client(url) as client:
    result = client.detect(image, num_beams=1)

for found in result.objects:
    print(found.label, found.box)  # x1, y1, x2, y2 in pixels of the image
result.draw(image).save("objects.png")
