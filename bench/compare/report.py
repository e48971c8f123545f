"""Figures -> tables for README and docs/benchmarks.md, which hold them between markers, and a plot."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.compare.limit import Machine, Work
from bench.compare.loads import CAPTION, DETECTION, percentile

ROOT = Path(__file__).parents[2]
JSON = ROOT / "docs" / "benchmarks.json"
PLOT = ROOT / "docs" / "images" / "benchmarks.png"
README, DOCUMENT = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- (\w+): python -m bench.compare -->\n).*?(<!-- end -->)", re.DOTALL)
PACKAGES = ("torch", "transformers", "openvino", "onnxruntime", "nvidia-pytriton")
MANY = 8
Figures = dict[str, Any]


def conditions() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


# --- reading figures --------------------------------------------------------------------------------------------------


def load(competitor: Figures, name: str, callers: int) -> Figures | None:
    """What was measured under one load, if it was."""
    return next((one for one in competitor["loads"] if (one["load"], one["callers"]) == (name, callers)), None)


def per_second(measured: Figures) -> float:
    return sum(map(len, measured["latencies"].values())) / measured["seconds"]


def latency(measured: Figures, kind: str, share: float) -> float:
    return percentile(measured["latencies"][kind], share)


def limits(figures: Figures) -> Callable[[int, int], float]:
    """(callers, tokens) -> answers a second, by the best rates that the machine showed during the run."""
    machines = [Machine(**machine) for machine in figures["machine"]]
    best = Machine(*(max(getattr(machine, rate) for machine in machines) for rate in Machine.__annotations__))
    work = Work(**figures["work"])
    return lambda callers, tokens: work.answers_per_second(best, callers, tokens)


# --- tables -----------------------------------------------------------------------------------------------------------


def summary(figures: Figures) -> str:
    """One line a competitor: alone, with many callers, beside detections, memory and quality."""
    lines = [
        f"| | caption alone | detection alone | captions/s, {MANY} callers | detections/s, {MANY} callers "
        f"| caption beside detections, against captions | memory | answers as transformers | quality |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, competitor in figures["competitors"].items():
        cells = [_alone(competitor, CAPTION), _alone(competitor, DETECTION)]
        cells += [_rate(competitor, kind.task) for kind in (CAPTION, DETECTION)]
        cells += [_beside(competitor), f"{competitor['memory_mib'] / 1024:.1f} GiB"]
        cells += [f"{competitor['equal']:.1%}", f"{competitor['score']:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines + _limit_line(figures))


def _alone(competitor: Figures, kind: Any) -> str:
    measured = load(competitor, kind.task, 1)
    return f"{latency(measured, str(kind), 50):.2f} s" if measured else ""


def _rate(competitor: Figures, name: str) -> str:
    """A script that is asked by many serves one after the other, so its rate is that of one caller."""
    measured = load(competitor, name, MANY) or load(competitor, name, 1)
    return f"{per_second(measured):.2f}" if measured else ""


def _beside(competitor: Figures) -> str:
    """The median, and how many times that among captions it is."""
    mixed, pure = load(competitor, "mixed", MANY), load(competitor, CAPTION.task, MANY)
    if not mixed or not pure:
        return ""
    median = latency(mixed, str(CAPTION), 50)
    return f"{median:.1f} s, {median / latency(pure, str(CAPTION), 50):.1f}x"


def _limit_line(figures: Figures) -> list[str]:
    if "work" not in figures:
        return []
    most = limits(figures)
    cells = [f"{1 / most(1, kind.tokens):.2f} s" for kind in (CAPTION, DETECTION)]
    cells += [f"{most(MANY, kind.tokens):.2f}" for kind in (CAPTION, DETECTION)]
    return [f"| *the machine's limit* | {' | '.join(cells)} | | | | |"]


def details(figures: Figures) -> str:
    """One line a load and task, one column a competitor."""
    competitors = figures["competitors"]
    names = list(dict.fromkeys(one["load"] for each in competitors.values() for one in each["loads"]))
    seen = {(one["load"], one["callers"]) for each in competitors.values() for one in each["loads"]}
    lines = [f"| | callers | {' | '.join(competitors)} |", "|---|---|" + "---|" * len(competitors)]
    for name, callers in sorted(seen, key=lambda load: (names.index(load[0]), load[1])):
        found = [load(competitor, name, callers) for competitor in competitors.values()]
        kinds = sorted({kind for one in found if one for kind in one["latencies"]})
        for kind in kinds:
            task, tokens = kind.split()
            title = f"`{task}`, {tokens} tokens" + (f", {name}" if name != task else "")
            lines.append(f"| {title} | {callers} | {' | '.join(_cell(one, kind) for one in found)} |")
    return "\n".join(lines)


def _cell(measured: Figures | None, kind: str) -> str:
    """Answers a second, median and 95 % of the latency."""
    if not measured or kind not in measured["latencies"]:
        return ""
    rate = len(measured["latencies"][kind]) / measured["seconds"]
    return f"{rate:.2f}/s, {latency(measured, kind, 50):.1f} to {latency(measured, kind, 95):.1f} s"


def story(figures: Figures) -> str:
    """Machine, versions, and how steady the machine was."""
    told = figures["conditions"]
    rates = [machine["bfloat16_flops"] / 1e9 for machine in figures["machine"]]
    versions = ", ".join(f"{package} {told[package]}" for package in PACKAGES)
    return (
        f"{told['cores']} cores of {told['processor']}, no GPU; Python {told['python']}, {versions}. The run took "
        f"{figures['minutes']:.0f} minutes; meanwhile the machine's bfloat16 matrix products, measured before each "
        f"competitor, made {min(rates):.0f} to {max(rates):.0f} GFLOP/s."
    )


def tables(figures: Figures) -> str:
    return "\n\n".join((summary(figures), details(figures), story(figures)))


# --- writing ----------------------------------------------------------------------------------------------------------

PICTURE = "![Captions a second by callers, and seconds until a caption beside detections]({}images/benchmarks.png)\n\n"
BLOCKS: dict[str, Callable[[Figures], str]] = {
    "summary": lambda figures: PICTURE.format("docs/") + summary(figures),
    "details": details,
    "story": lambda figures: story(figures) + "\n\n" + PICTURE.format("").strip(),
}


def filled(text: str, figures: Figures) -> str:
    """The document with what stands between its markers made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](figures)}\n{found[3]}", text)


def write(figures: Figures) -> None:
    from bench.compare.plot import draw

    JSON.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(figures, PLOT)
    for path in (README, DOCUMENT):
        path.write_text(filled(path.read_text(encoding="utf-8"), figures), encoding="utf-8")
