"""The tables of bench.compare, in Markdown. A figure is a median, with the range of repeated runs in parentheses."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from functools import partial

from bench.compare import figures as read
from bench.compare.loads import (
    CAPTION,
    DETECTION,
    EIGHT_TASKS,
    FIRST_TOKEN,
    ICON,
    ICONS,
    MANY,
    OCR,
    PARTS,
    SWEEP,
    Load,
)
from bench.compare.record import OURS, Figures, changed_since

HEADLINERS = "main"  # competitors of this part are in the summary
VERSIONS = ("torch", "transformers", "openvino", "onnxruntime", "nvidia-pytriton")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def headliners(figures: Figures) -> list[str]:
    found = [run["competitor"] for run in figures["runs"] if run["part"] == HEADLINERS and "loads" in run]
    return list(dict.fromkeys(found))


def summary(figures: Figures) -> str:
    """Return what README shows: a line per competitor with one client, many clients, memory and quality."""
    return _lines(figures, [0, 1, 3, 5, 6])


def overview(figures: Figures) -> str:
    """Return a line per competitor: single requests, many clients, costs, memory and quality."""
    return _lines(figures, range(7))


def _lines(figures: Figures, columns: Iterable[int]) -> str:
    rows = []
    for name in headliners(figures):
        captions = read.rate(figures, name, CAPTION.task, MANY)
        memory, score = read.value(figures, name, "memory_mib"), read.value(figures, name, "score")
        cells = [_one(figures, name, CAPTION), _one(figures, name, DETECTION), captions.show() if captions else ""]
        cells += [f"${read.dollars_per_million(figures, captions.median):.0f}" if captions else ""]
        cells += [f"{memory / 1024:.1f} GiB" if memory else "", f"{score:.3f}" if score else ""]
        rows.append([name, *cells])
    if "work" in figures:
        limit = read.limits(figures)
        cells = [f"{1 / limit(1, kind.tokens):.2f} s" for kind in (CAPTION, DETECTION)]
        rows.append(["*the machine's limit*", *cells, f"{limit(MANY, CAPTION.tokens):.2f}", "", "", ""])
    header = ["", "a caption, 1 client", "a detection, 1 client", f"captions per second, {MANY} clients"]
    header += ["a million captions", "memory", "quality"]
    chosen = list(columns)
    return table([header[n] for n in chosen], [[row[n] for n in chosen] for row in rows])


def _one(figures: Figures, name: str, kind: object) -> str:
    spread = read.seconds(figures, name, str(kind).split()[0], 1)
    return f"{spread.median:.2f} s" if spread else ""


CLIENTS = sorted({1, MANY, *SWEEP})
Cell = Callable[[Figures, str], "read.Spread | None"]
ROWS: dict[str, Cell] = {
    "a caption, 20 tokens": lambda f, name: read.seconds(f, name, CAPTION.task, 1),
    "a detection, 100 tokens": lambda f, name: read.seconds(f, name, DETECTION.task, 1),
    "a page of OCR, 200 tokens": lambda f, name: read.seconds(f, name, OCR.task, 1),
    "first token": lambda f, name: read.seconds(f, name, FIRST_TOKEN.name, 1),
    "eight tasks on one image, all of them": lambda f, name: read.in_all(f, name, EIGHT_TASKS.name, 8),
    "captions, 4 clients next to 4 with detections": lambda f, name: read.seconds(f, name, "mixed", 8, str(CAPTION)),
    "detections, 4 clients next to 4 with captions": lambda f, name: read.seconds(f, name, "mixed", 8, str(DETECTION)),
    "captions, 8 clients": lambda f, name: read.rate(f, name, CAPTION.task, MANY),
    "detections, 8 clients": lambda f, name: read.rate(f, name, DETECTION.task, MANY),
    "pages of OCR, 8 clients": lambda f, name: read.rate(f, name, OCR.task, MANY),
    "icons, 8 clients": lambda f, name: icons(f, name),
    **{f"captions, {clients} at once": partial(lambda clients, f, name: growth(f, name, clients), clients)
       for clients in SWEEP},
    **{f"{load.requests} images, 8 clients": partial(lambda load, f, name: per_second_of(f, name, load), load)
       for load in PARTS["images"]},
    "captions, 8 clients, the cores divided": lambda f, name: read.per_second(f, name, "replicas", MANY),
}  # fmt: skip
IN_SECONDS = 7  # of these rows; the others are answers per second


def icons(figures: Figures, name: str) -> read.Spread | None:
    return read.per_second(figures, name, ICONS.name, MANY) or read.per_second(figures, name, ICON.name, 1)


def per_second_of(figures: Figures, name: str, load: Load) -> read.Spread | None:
    """Return the rate under this load, not under another of the same name with more requests."""
    found = read.measured(figures, name, load.name, len(load.clients))
    rates = [load.requests / one["seconds"] for one in found if read.answers_in(one) == load.requests]
    return read.Spread.of(rates) if rates else None


def growth(figures: Figures, name: str, clients: int) -> read.Spread | None:
    """Return the rate of captions of so many clients; those of 1 and 8 belong to the main part."""
    return read.per_second(figures, name, "growth" if clients in SWEEP else CAPTION.task, clients)


def details(figures: Figures) -> str:
    """Return a line per load with what each competitor showed, the groups of competitors under one another."""
    everyone = read.competitors(figures)
    first = headliners(figures)
    groups = [first, [name for name in everyone if name not in first]]
    return "\n\n".join(_group(figures, names) for names in groups if names)


def _group(figures: Figures, names: list[str]) -> str:
    rows = []
    for number, (title, cell) in enumerate(ROWS.items()):
        cells = [cell(figures, name) for name in names]
        if any(cells):
            unit = " s" if number < IN_SECONDS else "/s"
            rows.append([title, *(spread.show(2, unit) if spread else "" for spread in cells)])
    for title, key, form in (
        ("memory, peak", "memory_mib", "{:.0f} MiB"),
        ("same answers as transformers", "equal", "{:.1%}"),
        ("quality", "score", "{:.3f}"),
    ):
        values = [read.value(figures, name, key) for name in names]
        if any(values):
            rows.append([title, *("" if found is None else form.format(found) for found in values)])
    captions = [read.rate(figures, name, CAPTION.task, MANY) for name in names]
    if any(captions):
        prices = [f"${read.dollars_per_million(figures, one.median):.0f}" if one else "" for one in captions]
        rows.append(["a million captions", *prices])
    return table(["", *names], rows)


def conditions(figures: Figures) -> str:
    """Describe the machine, the versions, how steady the machine was, and what a million answers costs."""
    known, runs = figures["conditions"], figures["runs"]
    rates = [run["machine"]["bfloat16_flops"] / 1e9 for run in runs if "machine" in run]
    versions = ", ".join(f"{package} {known[package]}" for package in VERSIONS)
    price = figures.get("dollars_an_hour", read.DOLLARS_AN_HOUR)
    lines = [
        f"{known['cores']} cores of {known['processor']}, no GPU; Python {known['python']}, {versions}. The machine's "
        f"bfloat16 matrix products, measured before each run, made {min(rates):.0f} to {max(rates):.0f} GFLOP/s.",
        f"A million answers cost `price / (3600 * answers/s) * 1,000,000`, with {MANY} clients and a price of "
        f"${price:.2f} an hour for this machine. The price is an assumption of November 2026 (`--price` sets another), "
        "near what clouds ask for two virtual cores and 8 GiB.",
    ]
    return "\n\n".join(textwrap.fill(line, width=120) for line in lines)


def age(figures: Figures) -> str:
    """Say when the figures were measured, which of them are older than the code, and what is missing."""
    lines = []
    stamps = sorted({(run["date"][:10], run["commit"]) for run in figures["runs"]})
    days = ", ".join(f"{date} at commit {commit}" for date, commit in stamps)
    lines.append(f"Measured on {days}.")
    older = sorted({folder for run in figures["runs"] for folder in changed_since(run)})
    parts = dict.fromkeys(run["part"] for run in figures["runs"] if changed_since(run))
    if older:
        lines.append(
            f"Since then the code of this server has changed in {', '.join(f'`{folder}`' for folder in older)}: its "
            f"figures in these parts are older than the code: {', '.join(parts)}."
        )
    if figures.get("planned"):
        present = {(run["part"], run["competitor"], run["round"]) for run in figures["runs"]}
        missing = [key for key in map(tuple, figures["planned"]) if key not in present]
        names = dict.fromkeys(f"{competitor} ({part})" for part, competitor, turn in missing if turn == 1)
        fewer = sum(turn > 1 for *_, turn in missing)
        if names:
            lines.append(f"The run was interrupted; not measured yet: {', '.join(names)}.")
        if fewer:
            lines.append(f"{fewer} repetitions of a part were not made, so that some ranges are of fewer runs.")
    failed = {run["competitor"]: run["error"] for run in figures["runs"] if "error" in run}
    lines += [f"{name} failed: `{error}`." for name, error in failed.items()]
    return "\n\n".join(textwrap.fill(line, width=120, break_long_words=False) for line in lines)


def is_ours(name: str) -> bool:
    return name.startswith(OURS)
