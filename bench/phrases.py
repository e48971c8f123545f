"""Measure many phrases about one new image in one call, against the time of the decoder by itself.

    python -m bench.phrases                   base geometry with random weights; some minutes
    python -m bench.phrases REPOSITORY        an exported repository, for a CPU

Each round sends `client.find(image, phrases)` with a new image, then the same call again, which finds the image's
features in the cache, so that its time is that of all but the encoder. Last come single calls, one after another.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.encode_once import BASE, encodings, image
from bench.harness import embedded_server
from florence2_client import Client, Options


def seconds_of(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, nargs="?")
    parser.add_argument("--phrases", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=12, help="of each answer; random weights do not end theirs")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    repository = options.repository
    if repository is None:
        from bench.checkpoints import base_checkpoint, export  # imports transformers

        repository = export(base_checkpoint(BASE / "base"), BASE, "auto")
    phrases = [f"thing number {number}" for number in range(options.phrases)]
    length: Options = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    ratios, savings = [], []
    with embedded_server(repository) as server, Client(server.grpc_url) as client:
        client.find(image(-1), phrases, **length)  # the first requests are slower
        for number in range(options.rounds):
            new, before = image(number), encodings(server)
            first = seconds_of(lambda new=new: client.find(new, phrases, **length).merged())
            runs = encodings(server) - before
            again = seconds_of(lambda new=new: client.find(new, phrases, **length).merged())
            other = image(number + 0.5)
            singly = seconds_of(lambda other=other: [client.find(other, phrase, **length) for phrase in phrases])
            print(
                f"{options.phrases} phrases, new image: {first:.1f} s, {runs:.0f} encodings; again: {again:.1f} s; "
                f"one call each: {singly:.1f} s"
            )
            ratios.append(first / again)
            savings.append(singly / first)
    print(f"{statistics.median(ratios):.2f} times the decoder's time (median of the rounds)")
    print(f"{statistics.median(savings):.2f} times as fast as one call each")


if __name__ == "__main__":
    main()
