"""Measure disk and memory of a server of base or large: docs/guides/checkpoints.md shows them.

    python -m bench.sizes base
    python -m bench.sizes large --precision int4

Makes a checkpoint with random weights, exports it with the defaults, serves it, and sends captions of 20 tokens with 3
beams, each about a different image: one, and then 8 at a time. Memory is the proportional set size, in which a page
that processes share counts once.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from bench.capacity import keep_in_flight, processes_by_stage
from bench.checkpoints import config_of, export, random_checkpoint
from bench.decode import PRECISIONS
from bench.harness import Peak, embedded_server, proportional_memory, shared_memory
from bench.load import Sender, parse_mix
from bench.memory import SIZES
from florence2.server.embedded import EmbeddedServer

VISION = {  # of the encoder, where it is not transformers' default
    "base": {},
    "large": dict(embed_dim=[256, 512, 1024, 2048], num_heads=[8, 16, 32, 64], num_groups=[8, 16, 32, 64]),
}


def disk(folder: Path) -> float:
    """Return the GB of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


async def measure(server: EmbeddedServer, in_flight: int) -> None:
    """Print memory by stage, and what captions take."""
    stages = processes_by_stage(server)
    processes = [process for group in stages.values() for process in group]

    def memory() -> list[float]:
        by_stage = [sum(map(proportional_memory, group)) for group in stages.values()]
        return [*by_stage, sum(by_stage), shared_memory(server)]

    mix = parse_mix("caption:20")
    loaded = memory()
    with Peak(memory) as peak:
        async with Sender(server.grpc_url) as sender:
            await keep_in_flight(sender, mix, 1, 1)  # the first request is slower
            single = await keep_in_flight(sender, mix, 3, 1)
            start = time.monotonic()
            many = await keep_in_flight(sender, mix, 2 * in_flight, in_flight)
            rate = 2 * in_flight / (time.monotonic() - start)
    print(f"{'memory, GiB':24} {'once loaded':>12} {'at most':>9}")
    for name, before, most in zip([*stages, "sum", "of it in /dev/shm"], loaded, peak.values, strict=True):
        print(f"{name:24} {before / 1024:12.2f} {most / 1024:9.2f}")
    seconds = statistics.median(reply.seconds for reply in single.replies)
    print(f"one caption at a time: {seconds:.1f} s; {in_flight} at a time: {rate:.2f} a second")
    print(f"{len(processes)} processes; outcomes {dict(single.outcomes() + many.outcomes())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    parser.add_argument("--folder", type=Path, default=Path("build/bench/sizes"))
    parser.add_argument("--in-flight", type=int, default=8)
    options = parser.parse_args()
    config = config_of(SIZES[options.size], **VISION[options.size])
    source = random_checkpoint(options.folder / options.size, config)
    repository = export(source, options.folder, options.precision)
    print(f"{options.size} in {options.precision}")
    print(f"checkpoint {disk(source):.2f} GB, repository {disk(repository):.2f} GB")
    start = time.monotonic()
    with embedded_server(repository) as server:
        print(f"ready after {time.monotonic() - start:.0f} s")
        asyncio.run(measure(server, options.in_flight))


if __name__ == "__main__":
    main()
