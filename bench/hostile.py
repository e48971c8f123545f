"""Pictures that callers send by mistake or by malice, and odd ones that are in order, in a run among good ones.

    python -m bench.hostile --url grpc://127.0.0.1:8001 --requests 300

Every broken one must be refused as INVALID_ARGUMENT, every odd one answered, every good one answered as when it was
asked alone; exits with 1 otherwise. A picture whose bits were flipped may be either, but nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from florence2.errors import Florence2Error
from florence2_client.transports.base import open_async_transport, parse_url

ENSEMBLE = "florence2_ensemble"
TASKS = ("<CAPTION>", "<OD>", "<DENSE_REGION_CAPTION>", "<OCR>")


def noise(chance: random.Random, width: int, height: int, bands: int = 3) -> Image.Image:
    """Coarse, so that it compresses as photographs do."""
    coarse = np.frombuffer(chance.randbytes(16 * 16 * bands), np.uint8).reshape(16, 16, bands)
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[bands]
    return Image.fromarray(coarse.squeeze(), mode).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """Its header is right and its data a few zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def truncated(chance: random.Random) -> bytes:
    whole = good(chance, chance.choice(("PNG", "JPEG", "WEBP")))
    return whole[: chance.randrange(1, len(whole) // 2)]


def flipped(chance: random.Random) -> bytes:
    data = bytearray(good(chance, chance.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))))
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def good(chance: random.Random, kind: str = "PNG") -> bytes:
    return encoded(noise(chance, chance.randint(64, 400), chance.randint(64, 400)), kind)


def animated(chance: random.Random) -> bytes:
    frames = [noise(chance, 80, 60) for _ in range(5)]
    return encoded(frames[0], chance.choice(("GIF", "WEBP")), save_all=True, append_images=frames[1:])


def sixteen_bit(chance: random.Random) -> bytes:
    grey = np.frombuffer(chance.randbytes(2 * 90 * 70), np.uint16).reshape(70, 90)
    return encoded(Image.fromarray(grey), chance.choice(("PNG", "TIFF")))


Make = Callable[[random.Random], bytes]
BROKEN: dict[str, Make] = {
    "empty": lambda chance: b"",
    "random bytes": lambda chance: b"\xff" + chance.randbytes(chance.randint(1, 5000)),
    "web page": lambda chance: b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "address": lambda chance: b"https://example.org/picture.jpg",
    "damaged base64": lambda chance: b"data:image/png;base64,iVBORw0KGgo!!!",
    "PDF": lambda chance: b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n" + chance.randbytes(200),
    "SVG": lambda chance: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "PostScript": lambda chance: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "zip": lambda chance: b"PK\x03\x04" + chance.randbytes(300),
    "truncated": truncated,
    "bomb": lambda chance: png_that_claims(chance.randint(20_000, 60_000), chance.randint(20_000, 60_000)),
    "more than there can be": lambda chance: png_that_claims(2**31 - 1, 2**31 - 1),
    "no width": lambda chance: png_that_claims(0, 100),
    "header without data": lambda chance: png_that_claims(2000, 2000),
}
ODD: dict[str, Make] = {
    "CMYK": lambda chance: encoded(noise(chance, 120, 90, 4), "JPEG"),
    "16 bit": sixteen_bit,
    "animated": animated,
    "one bit": lambda chance: encoded(noise(chance, 50, 40, 1).convert("1")),
    "palette": lambda chance: encoded(noise(chance, 50, 40).quantize(8), "GIF"),
    "transparent": lambda chance: encoded(noise(chance, 50, 40).convert("RGBA"), "WEBP"),
    "one pixel": lambda chance: encoded(noise(chance, 1, 1)),
    "a line": lambda chance: encoded(noise(chance, 5000, 1)),
    "progressive": lambda chance: encoded(noise(chance, 300, 200), "JPEG", progressive=True),
    "large": lambda chance: encoded(noise(chance, 4000, 3000), "JPEG"),
}


def question(picture: bytes, task: str, **more: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {"IMAGE": np.array([picture], np.object_), "TASK": np.array([task.encode()], np.object_), **more}


async def run(url: str, requests: int, in_flight: int, seed: int = 0) -> Counter[str]:
    """Counts what came of each kind: `kind: outcome`. The first words of an outcome that must not be are `WRONG`."""
    chance = random.Random(seed)
    transport = open_async_transport(parse_url(url))
    places, counts = asyncio.Semaphore(in_flight), Counter[str]()
    short = {"MAX_NEW_TOKENS": np.array([16], np.int32), "NUM_BEAMS": np.array([1], np.int32)}

    async def ask(picture: bytes, task: str) -> str:
        """`answered: …` or the name of the error."""
        try:
            outputs = await asyncio.wait_for(transport.infer(ENSEMBLE, question(picture, task, **short), None), 120)
        except Florence2Error as error:
            return type(error).__name__
        return f"answered: {outputs['GENERATED_TEXT'][0].decode()}"

    known = [(good(chance), task) for task in TASKS for _ in range(2)]
    alone = [await ask(picture, task) for picture, task in known]

    async def one(kind: str, name: str, picture: bytes, task: str, expected: str | None) -> None:
        async with places:
            outcome = await ask(picture, task)
        answered = outcome.startswith("answered")
        right = {
            "good": outcome == expected,
            "odd": answered,
            "broken": outcome == "InvalidRequest",
            "flipped": answered or outcome == "InvalidRequest",
        }[kind]
        counts[f"{kind}: {'answered' if answered else outcome}" if right else f"WRONG {kind} ({name}): {outcome}"] += 1

    jobs = []
    for _ in range(requests):
        kind = chance.choices(("good", "odd", "broken", "flipped"), (3, 2, 4, 1))[0]
        index = chance.randrange(len(known))
        if kind == "good":
            jobs.append(one(kind, "", *known[index], alone[index]))
        elif kind == "flipped":
            jobs.append(one(kind, "", flipped(chance), "<CAPTION>", None))
        else:
            table = ODD if kind == "odd" else BROKEN
            name = chance.choice(sorted(table))
            jobs.append(one(kind, name, table[name](chance), chance.choice(TASKS), None))
    await asyncio.gather(*jobs)
    await transport.close()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--in-flight", type=int, default=16)
    options = parser.parse_args()
    counts = asyncio.run(run(options.url, options.requests, options.in_flight))
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d}  {outcome}")
    return int(any(outcome.startswith("WRONG") for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
