"""Compare requests through the gateway with the same requests sent straight over gRPC.

    python -m bench.gateway REPOSITORY [--clients 8] [--requests 200] [--turns 3]

Both ways take turns on one server, with a different image each time, so no cache answers. Prints the latency of each,
and what the gateway adds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import io
import itertools
import random
import statistics
import subprocess
from pathlib import Path

import aiohttp
from PIL import Image

from bench.harness import FLORENCE2, ClosedLoop, embedded_server
from florence2_client import AsyncClient

TASK, TOKENS, SIDE = "<CAPTION>", 20, 320


def image(number: int) -> bytes:
    """Return an image of its own for each number."""
    pixels = random.Random(number).randbytes(SIDE * SIDE * 3 // 64)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (SIDE // 8, SIDE // 8), pixels).resize((SIDE, SIDE)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


async def measure(grpc_url: str, base_url: str, clients: int, requests: int, turns: int) -> dict[str, list[float]]:
    """Return the latencies in milliseconds of both ways."""
    numbers, images = itertools.count(), iter([b""])
    found: dict[str, list[float]] = {"gRPC": [], "gateway": []}
    async with AsyncClient(grpc_url) as client, aiohttp.ClientSession() as session:

        async def direct() -> None:
            await client.run(next(images), TASK, num_beams=1, max_new_tokens=TOKENS)

        async def through() -> None:
            url = f"data:image/jpeg;base64,{base64.b64encode(next(images)).decode()}"
            parts = [{"type": "text", "text": TASK}, {"type": "image_url", "image_url": {"url": url}}]
            body = {"model": "florence2", "messages": [{"role": "user", "content": parts}]}
            options = {"max_tokens": TOKENS, "num_beams": 1}
            async with session.post(f"{base_url}/chat/completions", json=body | options) as response:
                await response.json()
                response.raise_for_status()

        for turn in range(turns + 1):
            for name, call in ("gRPC", direct), ("gateway", through):
                images = iter([image(next(numbers)) for _ in range(requests)])
                loop = ClosedLoop([functools.partial(call)] * clients, requests)
                await loop.run()
                if turn:  # the first one warms up
                    found[name] += [reply.seconds * 1000 for reply in loop.replies]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with embedded_server(options.repository) as server:
        command = [FLORENCE2, "gateway", "--url", server.grpc_url, "--port", "0"]
        with subprocess.Popen([*command, "--no-access-log"], stdout=subprocess.PIPE, text=True) as gateway:
            assert gateway.stdout is not None
            base_url = next(line for line in gateway.stdout if line.startswith("The gateway")).split()[4]
            sizes = options.clients, options.requests, options.turns
            found = asyncio.run(measure(server.grpc_url, base_url, *sizes))
            gateway.terminate()
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        print(
            f"{name:8} median {medians[name]:7.1f} ms, mean {statistics.fmean(values):7.1f} ms, {len(values)} requests"
        )
    added = medians["gateway"] - medians["gRPC"]
    print(f"the gateway adds {added:.1f} ms to the median, {added / medians['gRPC']:.1%}")


if __name__ == "__main__":
    main()
