"""What breaks under load: prints what became of every request, and after how long all was well again.

    python -m bench.faults kill --repository DIR       kill -9 of each model's process and of tritonserver, under load
    python -m bench.faults stop --repository DIR       SIGTERM under load
    python -m bench.faults shm --repository DIR        /dev/shm runs full (needs root: a private one is mounted)
    python -m bench.faults clients --repository DIR    slow, silent and vanishing clients, by the hundred

Each starts `florence2 serve` for itself. Exits with 1 when a request got no answer and no clear error either, or when
the server did not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from bench import hostile, rude
from bench.serving import BACK, Load, Serving, under_load, until

LARGE = hostile.encoded(hostile.noise(random.Random(0), 2000, 1500), "BMP")  # 9 MB
STAGES = ("decoder", "preprocess", "vision", "postprocess", "tritonserver")


async def kill(serving: Serving, stage: str, callers: int = 8) -> tuple[Load, float | None]:
    """The load, and the seconds from the kill until an answer to a new question."""
    async with under_load(serving, callers) as load:
        os.kill(serving.process_of(stage), signal.SIGKILL)
        killed = time.monotonic()
        # What was on its way beyond the dead stage may still be answered: the server is back after it was away.
        await until(lambda: load.counts(killed)["ConnectionFailed"], BACK)
        away = time.monotonic()
        await until(lambda: load.answered_since(away), BACK)
        back = load.answered_since(away)
    return load, None if back is None else back - killed


async def stop(serving: Serving, callers: int = 16) -> tuple[Load, float, float, int]:
    """The load, when SIGTERM was sent, the seconds until the end, and the exit code. New ones come for a second."""
    async with under_load(serving, callers, warm_up=1.0) as load:
        told = time.monotonic()
        serving.process.terminate()
        await asyncio.sleep(1.0)
        load.stopping = True
        await until(lambda: serving.process.poll() is not None, BACK)
        took = time.monotonic() - told
    return load, told, took, serving.process.wait()


async def fill_shared_memory(
    serving: Serving, callers: int = 4, seconds: float = 8.0
) -> tuple[Load, Load, float | None]:
    """Takes all that /dev/shm has left, for a while, in which pictures come that need more of it than those before.

    The ordinary load, that of the large pictures, and the seconds from the end of it to the next answer.
    """
    filler = Path("/dev/shm/filler")
    large = Load([serving.grpc_url, serving.http_url], callers, picture=LARGE)
    async with under_load(serving, callers) as load:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        asking = asyncio.create_task(large.run())
        await asyncio.sleep(seconds)
        filler.unlink()
        freed = time.monotonic()
        await until(lambda: load.answered_since(freed) or serving.process.poll() is not None, BACK)
        back = load.answered_since(freed)
        large.stopping = True
        await asking
    return load, large, None if back is None else back - freed


async def rude_clients(
    serving: Serving, each: int = 100, callers: int = 4, seconds: float = 10.0
) -> dict[str, tuple[Load, int]]:
    """By kind of rudeness: the load of polite callers beside it, and the server's resident bytes afterwards."""
    results = {}
    for name, be_rude in {"nobody": None, **rude.KINDS}.items():
        async with under_load(serving, callers, warm_up=0.0) as load:
            load.replies.clear()
            load.sent = 0
            crowd = [
                asyncio.create_task(be_rude(serving.http_url, serving.grpc_url)) for _ in range(each if be_rude else 0)
            ]
            await asyncio.sleep(seconds)
            for client in crowd:
                client.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
        results[name] = load, resident(serving)
    return results


def resident(serving: Serving) -> int:
    pages = (int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in serving.processes())
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


# ---- the programs


def run_kill(repository: Path) -> bool:
    fine = True
    print(f"{'killed':14} {'back after':>10}   what became of the requests")
    with Serving(repository) as serving:
        for stage in STAGES:
            load, seconds = asyncio.run(kill(serving, stage))
            fine &= load.clear and seconds is not None
            print(
                f"{stage:14} {'never' if seconds is None else f'{seconds:8.1f} s'}   {dict(load.counts())}", flush=True
            )
            if stage == STAGES[-2]:
                break
    with Serving(repository) as serving:  # a fifth death in a short while would be the last
        load, seconds = asyncio.run(kill(serving, "tritonserver"))
        fine &= load.clear and seconds is not None
        print(f"{'tritonserver':14} {'never' if seconds is None else f'{seconds:8.1f} s'}   {dict(load.counts())}")
    return fine


def run_stop(repository: Path) -> bool:
    with Serving(repository) as serving:
        load, told, took, code = asyncio.run(stop(serving))
    accepted = Counter(outcome for asked, came, outcome in load.replies if asked < told <= came)
    later = Counter(outcome for asked, _, outcome in load.replies if asked >= told)
    print(f"exit code {code} after {took:.1f} s; under way at SIGTERM: {dict(accepted)}; asked later: {dict(later)}")
    return code == 0 and load.clear and set(accepted) == {"answered"}


def run_shm(repository: Path) -> bool:
    with Serving(repository) as serving:
        load, large, seconds = asyncio.run(fill_shared_memory(serving))
        code = serving.process.poll()
        print(f"pictures as before: {dict(load.counts())}; large ones: {dict(large.counts())}")
        print("never again" if seconds is None else f"answered again {seconds:.1f} s after there was room")
        print(f"florence2 serve {'runs on' if code is None else f'ended with exit code {code}'}")
    return load.clear and large.clear


def run_clients(repository: Path, each: int = 100) -> bool:
    fine = True
    with Serving(repository) as serving:
        print(
            f"{each} of each kind beside 4 polite callers, 10 s\n{'rudeness':14} {'p50 s':>7} {'worst s':>8} {'MiB':>7}"
        )
        for name, (load, memory) in asyncio.run(rude_clients(serving, each)).items():
            times = [told - asked for asked, told, outcome in load.replies if outcome == "answered"]
            fine &= load.clear and set(load.counts()) == {"answered"}
            print(f"{name:14} {np.median(times):7.3f} {max(times):8.3f} {memory / 2**20:7.1f}   {dict(load.counts())}")
    return fine


PROGRAMS = {"kill": run_kill, "stop": run_stop, "shm": run_shm, "clients": run_clients}
PRIVATE = "FLORENCE2_PRIVATE_SHM"


def in_private_shared_memory(size: str = "300m") -> int:
    """This same program again, with a small /dev/shm of its own."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "bench.faults", *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, PRIVATE: "1"}, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--repository", type=Path, required=True, help="an exported repository")
    options = parser.parse_args()
    if options.program == "shm" and PRIVATE not in os.environ:
        return in_private_shared_memory()
    return int(not PROGRAMS[options.program](options.repository))


if __name__ == "__main__":
    sys.exit(main())
