"""Write the figures of bench.compare into the README and docs/benchmarks.md, between markers."""

from __future__ import annotations

import re
from collections.abc import Callable

from bench.compare import tables
from bench.compare.record import ROOT, Figures

PLOT = ROOT / "docs" / "images" / "benchmarks.png"
README, DOCUMENT = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- (\w+): python -m bench.compare -->\n).*?(<!-- end -->)", re.DOTALL)
LINK = "![Captions per second, by way of serving and by clients, below the machine's limit](images/benchmarks.png)"
BLOCKS: dict[str, Callable[[Figures], str]] = {
    "summary": tables.summary,
    "overview": lambda figures: tables.overview(figures) + "\n\n" + LINK,
    "conditions": tables.conditions,
    "age": tables.age,
    "details": tables.details,
}


def filled(text: str, figures: Figures) -> str:
    """Return the document with new content between its markers."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](figures)}\n{found[3]}", text)


def write(figures: Figures) -> None:
    """Write the blocks as the figures are, and as the code is now, which may be newer."""
    for path in (README, DOCUMENT):
        path.write_text(filled(path.read_text(encoding="utf-8"), figures), encoding="utf-8")
