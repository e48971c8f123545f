"""List the elements of a screenshot, as OmniParser does: python ui_parser.py IMAGE [URL] [ICON_MODEL].

Each line is JSON: a text with its box, or an icon with its box and a caption. ICON_MODEL is the ensemble that captions
the icons; export one with `florence2 export CHECKPOINT --image-size 64 --name icons` and name it `icons_ensemble`.
"""

import json
import sys

from florence2_client import Client

Box = tuple[float, float, float, float]


def parse(image: str, url: str, icon_model: str) -> None:
    """Find texts and regions in tiles, then caption the regions that hold no text, all at once."""
    with Client(url) as client:
        texts = client.ocr_with_region(image, tiles="auto").objects
        regions = client.propose_regions(image, tiles="auto").objects
    icons = [region.box for region in regions if not any(shares(region.box, text.box) for text in texts)]
    with Client(url, icon_model) as client:
        captions = client.caption_regions(image, icons, num_beams=1, max_new_tokens=20)
    for text in texts:
        print(json.dumps({"type": "text", "box": text.box, "content": text.label}))
    for box, result in zip(icons, captions, strict=True):
        content = str(result.error) if result.error else result.answer.text
        print(json.dumps({"type": "icon", "box": box, "content": content}))


def shares(one: Box, other: Box) -> bool:
    """Return whether two boxes share at least half of the smaller one."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other))
    return width > 0 and height > 0 and width * height >= smaller / 2


given = dict(enumerate(sys.argv))
parse(given[1], given.get(2, "grpc://127.0.0.1:8001"), given.get(3, "florence2_ensemble"))
