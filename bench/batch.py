"""Run `florence2 batch` on many small images: speed, memory over time, and a kill -9 half way.

    python -m bench.batch REPOSITORY [--images 10000]

Exits with 1 if an answer is missing or duplicated, or if memory grows.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

from bench.harness import FLORENCE2, SECONDS_BETWEEN_SAMPLES, embedded_server, usage_of

MOST_GROWTH_MIB = 32.0  # 10,000 keys of answers take 3


@dataclass(frozen=True)
class Sample:
    """The progress of a run and the memory of its process."""

    seconds: float
    answers: int
    mib: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded_server(options.repository, print) as server:
        images = Path(folder) / "images"
        make_images(images, options.images)
        problems = measure(server.grpc_url, images, Path(folder) / "answers.jsonl", options.images)
    for problem in problems:
        print(problem)
    return bool(problems)


def measure(url: str, images: Path, out: Path, count: int) -> list[str]:
    """Kill one run half way and let another finish; print what they did and return what is wrong."""
    first = run(url, images, out, kill_at=count // 2)
    second = run(url, images, out)
    answers = Counter(json.loads(line)["image"] for line in out.read_text().splitlines())
    problems = []
    if len(answers) != count or set(answers.values()) != {1}:
        problems.append(f"{count} images have {len(answers)} answers and {answers.total() - len(answers)} duplicates")
    for name, samples in (("until the kill", first), ("until the end", second)):
        begin, end = samples[0], samples[-1]
        rate = (end.answers - begin.answers) / max(end.seconds - begin.seconds, 1e-9)
        # Without its start. If all answers came between two samples, there is only the last.
        settled = [s for s in samples if s.answers > begin.answers + 0.1 * (end.answers - begin.answers)] or [end]
        growth = max(s.mib for s in settled) - settled[0].mib
        print(f"{name}: {end.answers - begin.answers} answers, {rate:.1f}/s; MiB of memory by number of answers:")
        print("  " + ", ".join(f"{s.answers}: {s.mib:.0f}" for s in settled[:: max(1, len(settled) // 10)]))
        if growth > MOST_GROWTH_MIB:
            problems.append(f"{name} memory grew by {growth:.0f} MiB")
    return problems


def run(url: str, images: Path, out: Path, kill_at: int | None = None) -> list[Sample]:
    """Run `florence2 batch` and watch it; `kill_at` is the number of answers at which to kill it."""
    command = [FLORENCE2, "batch", str(images), "--tasks", "caption"]
    command += ["--out", str(out), "--url", url, "--num-beams", "1", "--max-new-tokens", "1"]
    samples: list[Sample] = []
    start = time.monotonic()
    with psutil.Popen(command) as process:
        while process.poll() is None:
            answers = out.read_bytes().count(b"\n") if out.exists() else 0
            samples.append(Sample(time.monotonic() - start, answers, usage_of([process]).memory))
            if kill_at is not None and answers >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    return [sample for sample in samples if sample.mib]


def make_images(folder: Path, count: int) -> None:
    """Write small PNGs of one color each, a hundred per directory."""
    for number in range(count):
        path = folder / f"{number // 100:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 128)).save(path)


if __name__ == "__main__":
    sys.exit(main())
