"""Run several tasks and find several things in one call each: python client_several.py IMAGE [URL]."""

import sys

from PIL import Image

from florence2_client import Client

image = sys.argv[1]
url = sys.argv[2] if len(sys.argv) > 2 else "grpc://127.0.0.1:8001"

with Client(url) as client:
    caption, objects, text = client.ask(image, ["caption", "od", "ocr"])
    outlines = client.segment(image, ["a star", "a triangle", "a circle"])

print(caption.text, objects.labels, text.text, sep="\n")
for result in outlines:
    print(result.prompt_text, "->", result.error or f"{len(result.objects)} found")

found = outlines.succeeded
if found:
    found.draw(image).save("outlines.png")
    for number, (label, mask) in enumerate(zip(found.labels, found.iter_masks(), strict=True)):
        Image.fromarray(mask).save(f"{number}-{label.replace(' ', '-')}.png")
