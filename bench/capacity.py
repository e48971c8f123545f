"""What a request costs a server, by stage: processor seconds and memory. docs/capacity.md plans with them.

    python -m bench.capacity build/model_repository --mix caption:20 --requests 24
    python -m bench.capacity build/model_repository --mix caption:20=0.7,od:200=0.3 --requests 24

Starts an embedded server and keeps so many requests of the mix in flight, each with another picture. Processor seconds
hold on a machine that has other work too, where answers a second do not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from bench.load import Caller, Kind, parse_mix
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2.server.stubs import model_processes

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 2**20
TRITON = "tritonserver"


class Use(NamedTuple):
    """Of one process so far."""

    seconds: float  # of processors
    resident: int  # bytes, at most so far


def uses(server: EmbeddedServer) -> dict[str, list[Use]]:
    """By model; Triton's own under its name."""
    processes = model_processes(server._folder)
    found: dict[str, list[Use]] = defaultdict(list)
    for process, model in processes.items():
        found[model].append(_use(process))
    found[TRITON].append(
        _use(int(Path(f"/proc/{next(iter(processes))}/stat").read_text().rpartition(")")[2].split()[1]))
    )
    return found


def _use(process: int) -> Use:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    high = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return Use((int(fields[11]) + int(fields[12])) / TICKS, int(high.split()[1]) * 1024)


async def keep_asking(caller: Caller, mix: list[Kind], requests: int, in_flight: int) -> dict[str, int]:
    """How they ended."""
    chance, outcomes = random.Random(0), defaultdict(int)
    shares = [kind.share for kind in mix]
    waiting = iter(chance.choices(mix, shares, k=requests))

    async def one_after_the_other() -> None:
        for kind in waiting:
            outcomes[await caller.ask(kind.name, kind.tokens)] += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
    return dict(outcomes)


async def measure(server: EmbeddedServer, options: argparse.Namespace) -> None:
    async with Caller(server.grpc_url, beams=options.beams) as caller:
        await keep_asking(caller, options.mix, 2, 2)  # the first are slower
        before, start = uses(server), time.monotonic()
        outcomes = await keep_asking(caller, options.mix, options.requests, options.in_flight)
        took, after = time.monotonic() - start, uses(server)
    total = 0.0
    print(f"{'':24} {'processes':>9} {'processor s a request':>22} {'MiB':>7}")
    for model, now in after.items():
        seconds = sum(use.seconds for use in now) - sum(use.seconds for use in before[model])
        total += seconds / options.requests
        memory = sum(use.resident for use in now) / MIB
        print(f"{model:24} {len(now):9d} {seconds / options.requests:22.3f} {memory:7.0f}")
    shared = sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob(f"{server._shm_prefix}*")) / MIB
    print(f"{'/dev/shm':24} {'':9} {'':22} {shared:7.0f}")
    print(
        f"{total:.2f} processor seconds a request; {outcomes} in {took:.0f} s, {options.requests / took:.2f} a second"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--mix", type=parse_mix, default="caption:20", metavar="TASK:TOKENS[=SHARE],…")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--beams", type=int, default=3)
    options = parser.parse_args()
    with EmbeddedServer(ServingOptions.on_free_ports(options.repository), report=lambda line: None) as server:
        asyncio.run(measure(server, options))


if __name__ == "__main__":
    main()
