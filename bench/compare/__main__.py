"""Compare this server with other ways to run Florence-2 on this machine, part by part.

    python -m bench.compare --list               the parts, and how long each takes
    python -m bench.compare --parts prepare      only make the checkpoints, exports and conversions
    python -m bench.compare --minutes 60         all parts; what does not fit in the time is left for the next run
    python -m bench.compare --parts main long    only these
    python -m bench.compare --report             only write the tables and the plot again
    python -m bench.compare --quick              the bundled checkpoint and few tokens, only printed

Competitors run one after the other, each with the machine to itself, on the same images, tasks, numbers of beams and
of tokens. Every run is written to docs/benchmarks.json at once, and what it holds is not measured again unless the
code of this server has changed. At the end, or when interrupted, README, docs/benchmarks.md and the plot are written.
Quality is measured on the bundled checkpoint, since the random weights of base geometry have none.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

from bench.checkpoints import BUNDLED, base_checkpoint
from bench.compare import documents, machine, tables
from bench.compare.competitors import line_up, prepare
from bench.compare.figures import DOLLARS_AN_HOUR
from bench.compare.loads import PARTS, tiny
from bench.compare.plot import draw
from bench.compare.record import JSON, Record, key_of
from bench.compare.steps import compare, listing, plan, say

FOLDER = Path("build/bench")
SCENES = 10


def quick(parts: list[str]) -> None:
    """Run all competitors on a few tokens of the bundled checkpoint, and print the tables."""
    prepare(BUNDLED, FOLDER)
    bundled = line_up(BUNDLED, FOLDER)
    steps = [
        dataclasses.replace(step, loads=list(map(tiny, step.loads))) for step in plan(bundled, bundled, parts, 1, 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder) / "quick.json")
        record.update(conditions=machine.conditions(), work=dataclasses.asdict(machine.Work.of_base()))
        compare(steps, record)
        print(tables.overview(record.figures), tables.details(record.figures), tables.age(record.figures), sep="\n\n")
        draw(record.figures, FOLDER / "quick.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["prepare", *PARTS], default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each part but quality is measured (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing that would end later")
    parser.add_argument("--price", type=float, help=f"dollars an hour of this machine (default: {DOLLARS_AN_HOUR})")
    parser.add_argument("--again", action="store_true", help="measure these parts again")
    for name, text in (
        ("list", "print the parts"),
        ("report", "measure nothing"),
        ("quick", "a check of some minutes"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parts = [part for part in options.parts if part != "prepare"]
    if options.quick:
        return quick(parts)
    record, checkpoint = Record(JSON), FOLDER / "base"
    fast, good = line_up(checkpoint, FOLDER), line_up(BUNDLED, FOLDER)
    steps = [] if options.report else plan(fast, good, parts, options.rounds, SCENES)
    if options.list:
        return print(listing(steps, record))
    if options.price is not None:
        record.update(dollars_an_hour=options.price)
    if not options.report:
        prepare(base_checkpoint(checkpoint), FOLDER)
        prepare(BUNDLED, FOLDER)
    if steps:
        say(listing(steps, record))
        planned = [step.key for step in plan(fast, good, PARTS, options.rounds, SCENES)]
        work, conditions = dataclasses.asdict(machine.Work.of_base()), machine.conditions()
        again = {step.key for step in steps} if options.again else set()
        same = record.figures.get("conditions") == conditions  # another machine's figures cannot be compared with these
        runs = [one for one in record.figures["runs"] if same and key_of(one) not in again]
        record.update(conditions=conditions, work=work, planned=planned, runs=runs)
    try:
        compare(steps, record, options.minutes)
    finally:
        if steps or options.report:
            documents.write(record.figures)
            draw(record.figures, documents.PLOT)


if __name__ == "__main__":
    main()
