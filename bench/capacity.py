"""Measure what a request costs a server, by stage: processor seconds and memory. docs/capacity.md plans with them.

    python -m bench.capacity build/model_repository --mix caption:20 --requests 24
    python -m bench.capacity build/model_repository --mix caption:20=0.7,od:200=0.3 --requests 24

Starts an embedded server and keeps requests of the mix in flight, each with a different image. Processor seconds are
comparable even on a machine that does other work, unlike responses per second. Memory is the most during the run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import defaultdict
from pathlib import Path

import psutil

from bench.harness import ClosedLoop, Peak, embedded_server, processes_in, shared_memory, usage_of
from bench.load import Kind, Sender, parse_mix
from florence2.server.embedded import EmbeddedServer, model_processes


def processes_by_stage(server: EmbeddedServer) -> dict[str, list[psutil.Process]]:
    """Return a server's processes by model, and Triton's own as tritonserver."""
    models = model_processes(server._folder)
    found = defaultdict(list)
    for process in processes_in(server._folder):
        found[models.get(process.pid, "tritonserver")].append(process)
    return dict(sorted(found.items()))


def processor_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


async def keep_in_flight(sender: Sender, mix: list[Kind], requests: int, in_flight: int) -> ClosedLoop:
    """Send requests of the mix, so many at a time."""
    kinds = iter(random.Random(0).choices(mix, [kind.share for kind in mix], k=requests))
    loop = ClosedLoop([lambda: sender.send(*next(kinds)[:2])] * in_flight, requests)
    await loop.run()
    return loop


async def measure(server: EmbeddedServer, options: argparse.Namespace) -> None:
    """Print what a request costs this server."""
    async with Sender(server.grpc_url, beams=options.beams) as sender:
        await keep_in_flight(sender, options.mix, 2, 2)  # the first requests are slower
        stages, start = processes_by_stage(server), time.monotonic()
        before = [processor_seconds(processes) for processes in stages.values()]
        with Peak(lambda: [usage_of(processes).memory for processes in stages.values()]) as memory:
            loop = await keep_in_flight(sender, options.mix, options.requests, options.in_flight)
        took = time.monotonic() - start
        after = [processor_seconds(processes) for processes in stages.values()]
    costs = [(now - then) / options.requests for now, then in zip(after, before, strict=True)]
    print(f"{'':24} {'processes':>9} {'processor s a request':>22} {'MiB':>7}")
    for (stage, processes), cost, mib in zip(stages.items(), costs, memory.values, strict=True):
        print(f"{stage:24} {len(processes):9d} {cost:22.3f} {mib:7.0f}")
    print(f"{'/dev/shm':24} {'':9} {'':22} {shared_memory(server):7.0f}")
    print(f"{sum(costs):.2f} processor seconds a request; {dict(loop.outcomes())} in {took:.0f} s, "
          f"{options.requests / took:.2f} a second")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--mix", type=parse_mix, default="caption:20", metavar="TASK:TOKENS[=SHARE],…")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--beams", type=int, default=3)
    options = parser.parse_args()
    with embedded_server(options.repository) as server:
        asyncio.run(measure(server, options))


if __name__ == "__main__":
    main()
