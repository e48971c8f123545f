"""Damaged, unusual and good images in one run: each kind gets what it should."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import numpy as np

from bench.harness import embedded_server
from florence2.errors import Florence2Error
from florence2_client.transports import open_async_transport, parse_url
from tests.stress.conftest import Sizes
from tests.stress.images import DAMAGED, ENSEMBLE, UNUSUAL, flipped, good, request
from tests.stress.serving import kind_of

TASKS = ("<CAPTION>", "<OD>", "<DENSE_REGION_CAPTION>", "<OCR>")
SILENCE = 120.0  # seconds without a response
SHORT = {"MAX_NEW_TOKENS": np.array([16], np.int32), "NUM_BEAMS": np.array([1], np.int32)}


async def send_images(url: str, requests: int, in_flight: int = 16) -> Counter[str]:
    """Return how many images of each kind had which outcome; one that is not allowed begins with WRONG."""
    chance = random.Random(0)
    transport = open_async_transport(parse_url(url))
    slots, counts = asyncio.Semaphore(in_flight), Counter[str]()

    async def send(image: bytes, task: str) -> str:
        try:
            outputs = await asyncio.wait_for(transport.infer(ENSEMBLE, request(image, task, **SHORT), None), SILENCE)
        except Florence2Error as error:
            return kind_of(error)
        return f"answered: {outputs['GENERATED_TEXT'][0].decode()}"

    known = [(good(chance), task) for task in TASKS for _ in range(2)]
    expected = [await send(image, task) for image, task in known]

    async def one(kind: str, name: str, image: bytes, task: str, answer: str | None) -> None:
        async with slots:
            outcome = await send(image, task)
        answered, invalid = outcome.startswith("answered"), outcome == "InvalidRequest"
        right = {
            "good": outcome == answer,
            "unusual": answered,
            "damaged": invalid,
            "bit-flipped": answered or invalid,
        }[kind]
        counts[f"{kind}: {'answered' if answered else outcome}" if right else f"WRONG {kind} ({name}): {outcome}"] += 1

    jobs = []
    for _ in range(requests):
        kind = chance.choices(("good", "unusual", "damaged", "bit-flipped"), (3, 2, 4, 1))[0]
        index = chance.randrange(len(known))
        if kind == "good":
            jobs.append(one(kind, "", *known[index], expected[index]))
        elif kind == "bit-flipped":
            jobs.append(one(kind, "", flipped(chance), "<CAPTION>", None))
        else:
            table = UNUSUAL if kind == "unusual" else DAMAGED
            name = chance.choice(sorted(table))
            jobs.append(one(kind, name, table[name](chance), chance.choice(TASKS), None))
    await asyncio.gather(*jobs)
    await transport.close()
    return counts


def test_each_kind_of_image_gets_what_it_should(served: Path, sizes: Sizes) -> None:
    with embedded_server(served) as server:
        counts = asyncio.run(send_images(server.grpc_url, sizes.images))
    print()
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d}  {outcome}")
    assert not [outcome for outcome in counts if outcome.startswith("WRONG")]
