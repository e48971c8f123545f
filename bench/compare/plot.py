"""The plot of bench.compare: captions per second, and how they grow with clients, below the machine's limit."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.compare import figures as read
from bench.compare import tables
from bench.compare.loads import CAPTION, MANY
from bench.compare.record import Figures

matplotlib.use("Agg")
OURS, OTHERS, LIMIT = "#1a6aa8", "#9a9a9a", "#c8641b"


def draw(figures: Figures, path: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    captions_per_second(left, figures)
    captions_by_clients(right, figures)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def captions_per_second(axes: Axes, figures: Figures) -> None:
    """Draw a bar per competitor, with the range of repeated runs."""
    names = [name for name in tables.headliners(figures) if read.rate(figures, name, CAPTION.task, MANY)]
    spreads = [spread for name in names if (spread := read.rate(figures, name, CAPTION.task, MANY))]
    medians = [spread.median for spread in spreads]
    colors = [OURS if tables.is_ours(name) else OTHERS for name in names]
    axes.barh(names, medians, color=colors, xerr=ranges(spreads), capsize=3)
    for row, spread in enumerate(spreads):
        axes.text(spread.high, row, f"  {spread.median:.2f}", va="center")
    limit = read.limits(figures)(MANY, CAPTION.tokens)
    axes.axvline(limit, color=LIMIT, linestyle="--")
    axes.text(limit, len(names) / 2 - 0.5, "machine's limit ", color=LIMIT, ha="right", va="center", rotation=90)
    axes.set(title=f"Captions per second, {MANY} clients (more is better)", xlabel="captions/s", xlim=(0, limit * 1.05))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def captions_by_clients(axes: Axes, figures: Figures) -> None:
    """Draw a line per competitor, with its name at the end and the ranges of repeated runs."""
    shown: list[int] = []
    for name in read.competitors(figures):
        spreads = [(clients, found) for clients in tables.CLIENTS if (found := tables.growth(figures, name, clients))]
        if len(spreads) < 3:  # a script
            continue
        clients, medians = [number for number, _ in spreads], [spread.median for _, spread in spreads]
        color = OURS if tables.is_ours(name) else OTHERS
        axes.errorbar(clients, medians, ranges([spread for _, spread in spreads]), color=color, marker="o", capsize=3)
        axes.annotate(name, (clients[-1], medians[-1]), (0, -16), textcoords="offset points", ha="right", color=color)
        shown = sorted({*shown, *clients})
    limit = read.limits(figures)
    ticks = shown or [1, MANY]
    axes.plot(ticks, [limit(number, CAPTION.tokens) for number in ticks], color=LIMIT, linestyle="--")
    axes.annotate("machine's limit", (ticks[-1], limit(ticks[-1], CAPTION.tokens)), (0, -16),
                  textcoords="offset points", ha="right", color=LIMIT)  # fmt: skip
    axes.set(xscale="log", xticks=ticks, xticklabels=ticks, ylim=(0, None), xlabel="clients at once",
             ylabel="captions/s", title="Captions per second by clients")  # fmt: skip
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


def ranges(spreads: list[read.Spread]) -> list[list[float]]:
    """Return how far the ranges reach below and above the medians, as matplotlib takes error bars."""
    return [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]
