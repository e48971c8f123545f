"""Measure what it saves to encode each image once, before and after in one run.

    python -m bench.encode_once                   base geometry with random weights; some minutes
    python -m bench.encode_once REPOSITORY        an exported repository, for a CPU

"before" is a backend that encodes within `execute`, behind Triton's response cache. Both servers run throughout, and
take turns in each round, always with new images. First `florence2 batch` sends several tasks about some images. Then
eight tasks are asked about a new image at once, and each of them by itself about another.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from bench.harness import FLORENCE2, MIB, embedded_server
from bench.load import Kind, parse_mix
from florence2.server import embedded, folder
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client import Client

BACKEND = Path(__file__).parent / "synchronous_backend" / "model.py"
BASE = Path("build/bench")
# Lengths of typical answers; random weights do not end theirs.
EIGHT = (
    "caption:20,detailed_caption:40,more_detailed_caption:80,od:40,dense_region_caption:60,region_proposal:40,"
    "ocr:30,ocr_with_region:60"
)


@contextlib.contextmanager
def synchronous_server(repository: Path) -> Iterator[EmbeddedServer]:
    """Start a server as it was before."""
    command_line = embedded.command_line

    def with_cache(triton: Any, *arguments: Any) -> list[str]:
        size = ServingOptions().cache_mib * MIB
        return [
            *command_line(triton, *arguments),
            f"--cache-directory={triton.caches}",
            f"--cache-config=local,size={size}",
        ]

    with contextlib.ExitStack() as stack:
        with patch.object(folder, "STAND_IN", BACKEND), patch.object(embedded, "command_line", with_cache):
            server = stack.enter_context(embedded_server(repository))
        yield server  # without the patches: the other server starts now


def encodings(server: EmbeddedServer) -> float:
    """Return how many images were encoded so far; a second after the last one it is complete."""
    time.sleep(2)
    with urllib.request.urlopen(server.metrics_url) as page:
        text = page.read().decode()
    ours = re.search(r"^florence2_encoder_runs_total\{.* (\S+)$", text, re.M)
    tritons = re.search(r'^nv_inference_exec_count\{model="florence2_vision".* (\S+)$', text, re.M)
    return float((ours or tritons or [0, 0])[1])


def image(seed: float) -> bytes:
    encoded = io.BytesIO()
    Image.frombytes("RGB", (320, 240), random.Random(seed).randbytes(320 * 240 * 3)).save(encoded, "PNG")
    return encoded.getvalue()


def batch(server: EmbeddedServer, images: int, tasks: str, concurrency: int, seed: float) -> tuple[float, float]:
    """Run `florence2 batch` on new images; return its seconds, without its start, and the number of encodings."""
    before = encodings(server)
    with tempfile.TemporaryDirectory() as name:
        for number in range(images):
            Path(name, f"{number}.png").write_bytes(image(seed + number))
        command = [FLORENCE2, "batch", name, "--tasks", tasks]
        command += ["--out", f"{name}/answers.jsonl", "--url", server.grpc_url, "--max-new-tokens", "20"]
        start = time.monotonic()
        subprocess.run([*command, "--concurrency", str(concurrency)], check=True, capture_output=True)
        took = time.monotonic() - start
    return took, encodings(server) - before


def ask(client: Client, kind: Kind, encoded: bytes) -> float:
    """Return the seconds of one request."""
    start = time.monotonic()
    client.run(encoded, kind.name, max_new_tokens=kind.tokens)
    return time.monotonic() - start


def eight_and_one(server: EmbeddedServer, kinds: list[Kind], seed: float) -> tuple[float, float]:
    """Return the seconds of all tasks on one new image at once, and of the slowest by itself."""
    with Client(server.grpc_url) as client, ThreadPoolExecutor(len(kinds)) as pool:
        one = max(ask(client, kind, image(seed + number)) for number, kind in enumerate(kinds, 1))
        start = time.monotonic()
        new = image(seed)
        list(pool.map(lambda kind: ask(client, kind, new), kinds))
        return time.monotonic() - start, one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--tasks", default="caption,od,ocr")
    parser.add_argument("--concurrency", type=int, default=8, help="of florence2 batch")
    parser.add_argument("--eight", type=parse_mix, default=EIGHT, metavar="TASK:TOKENS,…")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    repository = options.repository
    if repository is None:
        from bench.checkpoints import base_checkpoint, export  # imports transformers

        repository = export(base_checkpoint(BASE / "base"), BASE, "auto")
    found: dict[str, list[float]] = {"batch": [], "one image": [], "before, one image": []}
    with synchronous_server(repository) as old, embedded_server(repository) as new:
        servers = {"before": old, "after": new}
        for server in servers.values():
            batch(server, 1, options.tasks, 1, 1e6)  # the first requests are slower
        for number in range(options.rounds):
            seconds = {}
            for name, server in servers.items():
                seconds[name], runs = batch(server, options.images, options.tasks, options.concurrency, 100 * number)
                print(f"{name}: {options.images} images, {options.tasks}: {runs:.0f} encodings, {seconds[name]:.1f} s")
            found["batch"].append(seconds["before"] / seconds["after"])
            for (name, server), key in zip(servers.items(), ("before, one image", "one image"), strict=True):
                all_of_them, slowest = eight_and_one(server, options.eight, 100 * number + 0.5)
                print(f"{name}: all of {len(options.eight)} tasks {all_of_them:.1f} s, the slowest {slowest:.1f} s")
                found[key].append(all_of_them / slowest)
    print(f"batch: {statistics.median(found['batch']):.2f} times as fast as before (median of the rounds)")
    print(
        f"{len(options.eight)} tasks about one new image: {statistics.median(found['one image']):.2f} times as long as "
        f"the slowest by itself; before {statistics.median(found['before, one image']):.2f}"
    )


if __name__ == "__main__":
    main()
