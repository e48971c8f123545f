"""Write what the parts of bench.gpu measured as Markdown, for docs/gpu.md: `python -m bench.gpu.table [FOLDER]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Values = dict[str, Any]
BOX_TOKENS = 6  # four locations and a label of about two tokens
PUBLISHED_BOXES = "published for an H100: 12.7 by LocateAnything-3B"
ROBOFLOW = "Roboflow publishes 652 ms for base on an L4"


def read(folder: Path) -> dict[str, Values]:
    """Return the values of each part that has run."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def markdown(parts: dict[str, Values]) -> str:
    """Return the tables of all parts. A part that has not run, or a value that it lacks, leaves no line."""
    first: Values = next(iter(parts.values()), {})
    versions = f"{first.get('device')}, torch {first.get('torch')}, {first.get('date')}"
    sizes = "Small sizes: a test of the program" if first.get("small") else "Base geometry with random weights"
    lines = [f"Measured by `python -m bench.gpu` on {versions}. {sizes}, unless a line says otherwise."]
    for title, table in TABLES.items():
        if rows := list(table(parts.get(table.__name__, {}))):
            lines += ["", f"| {title} | |", "|---|---|", *rows]
    failed = [f"{part}: {key.removesuffix('_failed')}" for part, values in parts.items() for key in values
              if key.endswith("_failed")]  # fmt: skip
    lines += ["", f"Failed: {', '.join(failed)}."] if failed else []
    return "\n".join(lines) + "\n"


def row(name: str, cell: object) -> str:
    return f"| {name} | {cell} |"


def exactness(values: Values) -> Iterator[str]:
    for beams in (1, 3, 5):
        if cell := values.get(f"equal_to_transformers_{beams}_beams"):
            yield row(
                f"float32, all tasks, {beams} beams", f"{cell['equal']} of {cell['of']} have transformers' tokens"
            )
    for precision in ("float16", "bfloat16"):
        if cell := values.get(f"quality_{precision}"):
            share = f"{cell['same_answers']} of {cell['of']} answers as in float32"
            yield row(precision, f"{share}; metrics change by {cell['largest_change']:.3f} at most")
    if "graph_answers_equal_eager" in values:
        different = values.get("graph_steps_that_differ_from_eager")
        yield row("graphs against eager steps", f"{different} differ in some bit")
        yield row("answers that the batch does not change", values.get("answers_that_do_not_depend_on_the_batch"))


def steps(values: Values) -> Iterator[str]:
    for name, cell in values.items():
        if name.startswith("step_ms_"):
            _, _, precision, load = name.split("_")
            yield row(f"step, {precision}, {load.replace('x', ' requests of ')} beams",
                      f"{cell['graph']} ms as a graph, {cell['eager']} without")  # fmt: skip
    for batch, cell in values.get("prefill_ms_per_request_by_batch", {}).items():
        yield row(f"prefill in a batch of {batch}", f"{cell} ms for each request")
    if shapes := values.get("capture_ms"):
        yield row("captures", f"{len(shapes)} shapes in {sum(shapes.values()) / 1e3:.1f} s")
    if memory := values.get("memory_mib"):
        yield row("memory with 24 rows", f"{memory['after']['reserved']} MiB")
    if memory := values.get("steps_and_graphs_mib"):
        yield row("memory of steps and graphs", f"{memory['taken']} MiB, of {memory['estimated']} counted")


def throughput(values: Values) -> Iterator[str]:
    for load in ("captions", "detections"):
        if cell := values.get(f"{load}_per_second"):
            yield row(f"{load} per second", f"{cell['engine']}; transformers in batches of 32: {cell['transformers']}; "
                      f"{cell['times']} times (target {cell['target']})")  # fmt: skip
    if boxes := values.get("boxes_per_second"):
        yield row("boxes per second, 6 tokens each", f"{boxes} ({PUBLISHED_BOXES})")
    for name, cell in values.items():
        if name.startswith("single_ms, "):
            yield row(f"single request, {name.removeprefix('single_ms, ')}",
                      f"{cell['engine']} ms; transformers {cell['transformers']} ms")  # fmt: skip


def encoder(values: Values) -> Iterator[str]:
    for name, cell in values.items():
        form, _, batch = name.partition("_ms_per_image_batch_")
        if batch:
            times = cell if isinstance(cell, dict) else {"ONNX Runtime": cell}
            cells = "; ".join(f"{how}: {taken} ms" for how, taken in times.items())
            best = min(times.values())
            share = values["gflop_per_image"] / best / values["matrix_product_tflops"]
            yield row(
                f"{form}, batch of {batch}", f"{cells} for each image, {share:.0%} of a large matrix product's rate"
            )


def together(values: Values) -> Iterator[str]:
    if "step_ms_by_itself" in values:
        yield row("step, encoder idle", f"{values['step_ms_by_itself']} ms")
    for place, name in ("process", "two processes"), ("thread", "two threads of one process"):
        if cell := values.get(f"as_{place}"):
            mps = f", {'with' if values['mps'] else 'without'} MPS" if place == "process" else ""
            rates = (
                f"{cell['images_per_second_together']} instead of {cell['images_per_second_by_itself']} images a second"
            )
            yield row(f"{name}{mps}", f"step {cell['step_ms_together']} ms; encoder {rates}")


def served(values: Values) -> Iterator[str]:
    if answers := values.get("answers"):
        same = answers["of"] - len(answers["different"])
        yield row("bundled checkpoint in float32, all tasks", f"{same} of {answers['of']} answers as transformers'")
    for name, cell in values.items():
        if isinstance(cell, dict) and "per_second" in cell:
            note = f"; {cell['per_second'] * (100 // BOX_TOKENS):.0f} boxes per second" if "100 tokens" in name else ""
            note = f" ({ROBOFLOW})" if "128 tokens" in name else note
            yield row(name, f"{cell['per_second']} per second; median {cell['median_s']} s, "
                      f"99 % {cell['99_percent_s']} s{note}")  # fmt: skip


TABLES: dict[str, Callable[[Values], Iterator[str]]] = {
    "answers, bundled checkpoint": exactness,
    "decoder": steps,
    "language model, 3 beams": throughput,
    "vision encoder, half precision": encoder,
    "encoder and decoder on one GPU": together,
    "served, over gRPC": served,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(os.environ.get("OUT", "gpu_out")))
    sys.stdout.write(markdown(read(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
