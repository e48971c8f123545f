"""Caption icons: `caption_regions` on a model exported at 64 x 64 pixels, against transformers at 768 and at 64.

    python -m bench.crops [CHECKPOINT] [--crops 100] [--size 64] [--reference 5]

Without CHECKPOINT, it uses base's geometry with random weights. Greedy, 20 tokens, float32 on both sides, so that the
tokens must be equal: transformers captions every crop at the small size. At 768 it captions only the first few, and
their time is multiplied; crops in a batch are no faster for transformers on a CPU. Exits with 1 if tokens differ.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoProcessor, Florence2ForConditionalGeneration, GenerationConfig

from bench.checkpoints import base_checkpoint, export
from bench.harness import embedded_server
from florence2_client import Client, Options
from florence2_export.checkpoint import read_checkpoint

TOKENS = 20
GREEDY = Options(num_beams=1, max_new_tokens=TOKENS, no_repeat_ngram_size=3, timeout=3600)
REPEATS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--crops", type=int, default=100)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--reference", type=int, default=5, help="crops that transformers captions at 768 pixels")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where exports are kept")
    options = parser.parse_args()
    checkpoint = options.checkpoint or base_checkpoint(options.work / "base")
    repository = export(checkpoint, options.work, "float32", image_size=options.size)
    screenshot, boxes = draw_icons(options.crops)
    texts, seconds = ours(repository, screenshot, boxes)
    crops = [screenshot.crop(box) for box in boxes]
    theirs, small = reference(checkpoint, crops, options.size)
    _, large = reference(checkpoint, crops[: options.reference], None)
    equal = sum(text == other for text, other in zip(texts, theirs, strict=True))
    expected = large / options.reference * options.crops
    print(f"| {options.crops} crops, greedy, up to {TOKENS} tokens, float32 | seconds | times faster |")
    print("|---|---|---|")
    print(f"| transformers at the checkpoint's size, {options.reference} crops, multiplied | {expected:.0f} | 1 |")
    print(f"| transformers at {options.size} x {options.size} | {small:.1f} | {expected / small:.0f} |")
    print(f"| `caption_regions`, exported at {options.size} | {seconds:.1f} | {expected / seconds:.0f} |")
    print(f"{equal} of {len(texts)} answers have transformers' tokens at {options.size} x {options.size}")
    return int(equal < len(texts))


def draw_icons(count: int) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Return a screenshot with icons in rows, and their boxes of 64 x 64 pixels."""
    random = np.random.default_rng(1)
    columns = 20
    screenshot = Image.new("RGB", (columns * 96, (count // columns + 1) * 96), (238, 240, 244))
    pen = ImageDraw.Draw(screenshot)
    boxes = []
    for number in range(count):
        x, y = number % columns * 96 + 16, number // columns * 96 + 16
        boxes.append((x, y, x + 64, y + 64))
        for _ in range(3):
            left, top = (int(start + offset) for start, offset in zip((x, y), random.integers(0, 40, 2), strict=True))
            end = (left + int(random.integers(8, 24)), top + int(random.integers(8, 24)))
            draw = pen.ellipse if random.random() < 0.5 else pen.rectangle
            draw((left, top, *end), fill=tuple(int(value) for value in random.integers(0, 256, 3)))
    return screenshot, boxes


def ours(
    repository: Path, screenshot: Image.Image, boxes: Sequence[tuple[int, int, int, int]]
) -> tuple[list[str], float]:
    """Return the generated texts, and the median seconds of all crops together; each run has other pixels."""
    with embedded_server(repository, print) as server, Client(server.grpc_url) as client:
        client.caption_regions(screenshot, boxes[:8], **GREEDY)
        seconds = []
        for repeat in range(REPEATS, 0, -1):
            image = Image.fromarray(np.asarray(screenshot) ^ np.uint8(repeat - 1))  # so that no cache knows it
            start = time.perf_counter()
            results = client.caption_regions(image, boxes, **GREEDY)
            seconds.append(time.perf_counter() - start)
    return [result.text for result in results], statistics.median(seconds)


def reference(checkpoint: Path, crops: Sequence[Image.Image], size: int | None) -> tuple[list[str], float]:
    """Return what transformers generates for each crop, and the seconds that it takes, without a first one."""
    model = Florence2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    if size:
        pixels = processor.image_processor
        pixels.size = pixels.crop_size = {"height": size, "width": size}
        processor.num_image_tokens = read_checkpoint(str(checkpoint), image_size=size).config.image.tokens
    generation = GenerationConfig.from_pretrained(checkpoint)
    generation.update(num_beams=1, early_stopping=False, max_new_tokens=TOKENS, no_repeat_ngram_size=3)
    texts: list[str] = []
    start = 0.0
    for number, crop in enumerate([crops[0], *crops]):
        if number == 1:
            start, texts = time.perf_counter(), []
        inputs = processor(text="<CAPTION>", images=crop, return_tensors="pt")
        with torch.inference_mode():
            [ids] = model.generate(**inputs, generation_config=generation)
        texts.append(re.sub("<s>|</s>|<pad>", "", processor.decode(ids, skip_special_tokens=False)))
    return texts, time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
