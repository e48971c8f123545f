"""The plot of docs/images/benchmarks.png: captions a second by callers, and what detections do to captions."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.compare.loads import CAPTION
from bench.compare.report import MANY, Figures, latency, limits, load, per_second

COLORS = ("#9a9a9a", "#5f5f5f", "#e3a557", "#c8641b", "#7fb3d8", "#1a6aa8")


def draw(figures: Figures, path: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    captions_by_callers(left, figures)
    captions_beside_detections(right, figures)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def captions_by_callers(axes: Axes, figures: Figures) -> None:
    for (name, competitor), color in zip(figures["competitors"].items(), COLORS, strict=False):
        found = [one for one in competitor["loads"] if one["load"] == CAPTION.task]
        callers, rates = [one["callers"] for one in found], [per_second(one) for one in found]
        if len(callers) == 1:  # a script: one after the other, however many wait
            axes.plot([1, 16], rates * 2, color=color, linestyle="--", label=name)
        else:
            axes.plot(callers, rates, color=color, marker="o", linestyle="-" if len(callers) > 2 else ":", label=name)
    most = limits(figures)
    callers = [1, 2, 4, 8, 16]
    axes.plot(callers, [most(n, CAPTION.tokens) for n in callers], color="black", linewidth=1, label="machine's limit")
    axes.set(xscale="log", xticks=callers, xticklabels=callers, ylim=(0, None), xlabel="callers",
             title=f"captions a second ({CAPTION.tokens} tokens, 3 beams)")  # fmt: skip
    axes.minorticks_off()
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def captions_beside_detections(axes: Axes, figures: Figures) -> None:
    """Median and 95 % of captions' latency, without and with detections among the callers."""
    names = [name for name, one in figures["competitors"].items() if load(one, "mixed", MANY)]
    for offset, (name_of_load, label, color) in enumerate(
        (
            (CAPTION.task, f"{MANY} callers want captions", "#1a6aa8"),
            ("mixed", "half of them want detections", "#c8641b"),
        )
    ):
        found = [load(figures["competitors"][name], name_of_load, MANY) for name in names]
        medians = [latency(one, str(CAPTION), 50) for one in found if one]
        most = [latency(one, str(CAPTION), 95) for one in found if one]
        places = [number + 0.4 * offset - 0.2 for number in range(len(names))]
        axes.barh(places, medians, 0.36, color=color, label=label,
                  xerr=[[0] * len(names), [b - a for a, b in zip(medians, most, strict=True)]], capsize=3)  # fmt: skip
    axes.set(yticks=range(len(names)), yticklabels=names, title="seconds until a caption: median and 95 %", xlabel=" ")
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
