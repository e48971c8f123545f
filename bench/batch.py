"""A batch run of many small pictures on the real server: speed, memory over time, and a kill -9 half way.

    python -m bench.batch REPOSITORY [--pictures 10000]

Exits with 1 if an answer is missing or there twice, or if memory grows.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions

MOST_GROWTH_MIB = 32.0  # 10,000 keys of answers take 3
SECONDS_BETWEEN_SAMPLES = 0.5


@dataclass(frozen=True)
class Sample:
    """How far a run was, and the memory of the process."""

    seconds: float
    answers: int
    mib: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--pictures", type=int, default=10_000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(ServingOptions.on_free_ports(options.repository)) as server,
    ):
        pictures = Path(folder) / "pictures"
        make_pictures(pictures, options.pictures)
        problems = measure(server.grpc_url, pictures, Path(folder) / "answers.jsonl", options.pictures)
    for problem in problems:
        print(problem)
    return bool(problems)


def measure(url: str, pictures: Path, out: Path, count: int) -> list[str]:
    """One run that is killed half way and one that ends it; prints what it sees and returns what is wrong."""
    first = run(url, pictures, out, kill_at=count // 2)
    second = run(url, pictures, out)
    answers = Counter(json.loads(line)["image"] for line in out.read_text().splitlines())
    problems = []
    if len(answers) != count or set(answers.values()) != {1}:
        problems.append(f"{count} pictures have {len(answers)} answers, {answers.total() - len(answers)} of them twice")
    for name, samples in (("until the kill", first), ("until the end", second)):
        begin, end = samples[0], samples[-1]
        rate = (end.answers - begin.answers) / max(end.seconds - begin.seconds, 1e-9)
        # Not while it starts. If all answers came between two looks, there is but the last.
        settled = [s for s in samples if s.answers > begin.answers + 0.1 * (end.answers - begin.answers)] or [end]
        growth = max(s.mib for s in settled) - settled[0].mib
        print(f"{name}: {end.answers - begin.answers} answers, {rate:.1f}/s; memory in MiB after so many answers:")
        print("  " + ", ".join(f"{s.answers}: {s.mib:.0f}" for s in settled[:: max(1, len(settled) // 10)]))
        if growth > MOST_GROWTH_MIB:
            problems.append(f"{name} memory grew by {growth:.0f} MiB")
    return problems


def run(url: str, pictures: Path, out: Path, kill_at: int | None = None) -> list[Sample]:
    """`florence2 batch` in a process of its own, watched, and killed at so many answers."""
    command = [str(Path(sys.executable).with_name("florence2")), "batch", str(pictures), "--tasks", "caption"]
    command += ["--out", str(out), "--url", url, "--num-beams", "1", "--max-new-tokens", "1"]
    samples: list[Sample] = []
    start = time.monotonic()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            answers = out.read_bytes().count(b"\n") if out.exists() else 0
            samples.append(Sample(time.monotonic() - start, answers, resident_mib(process.pid)))
            if kill_at is not None and answers >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    return [sample for sample in samples if sample.mib]


def resident_mib(pid: int) -> float:
    """Resident memory; 0 once the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    sizes = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    return sizes[0] / 1024 if sizes else 0.0


def make_pictures(folder: Path, count: int) -> None:
    """Small PNGs of one colour each, a hundred a directory."""
    for number in range(count):
        path = folder / f"{number // 100:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 128)).save(path)


if __name__ == "__main__":
    sys.exit(main())
