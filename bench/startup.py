"""Measure what compiling the decoder costs at the first start: seconds and memory of the process that decodes.

    python -m bench.startup --precision int8

Each start is a new process that loads a tiny model, and its first step. The cache is a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

import psutil
from numba.core.caching import NullCache

from florence2.engine.cpu.kernels.step import decode
from florence2_export.compile import PRECISIONS, load_step

STARTS = ("compiles itself", "first", "second")  # as before; another process compiles; the result is loaded


def measure(start: str, precision: str) -> None:
    """Load, and print the seconds that it took and the memory of this process."""
    if start == "compiles itself":
        decode._cache = NullCache()  # type: ignore[attr-defined]
    else:
        del decode._cache._folders[1:]  # type: ignore[attr-defined]  # what earlier starts left
    before = time.monotonic()
    load_step(precision)
    seconds, memory = time.monotonic() - before, psutil.Process().memory_info().rss
    print(f"| {start} | {seconds:.1f} s | {memory / 1e6:.0f} MB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    parser.add_argument("--start", choices=STARTS, help="measure only this one, in this process")
    options = parser.parse_args()
    if options.start:
        return measure(options.start, options.precision)
    print("| start | until the first step | memory |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for start in STARTS:
            command = [sys.executable, "-m", "bench.startup", "--start", start, "--precision", options.precision]
            subprocess.run(
                command, env={**os.environ, "NUMBA_CACHE_DIR": folder}, stderr=subprocess.DEVNULL, check=True
            )


if __name__ == "__main__":
    main()
