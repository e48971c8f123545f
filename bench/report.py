"""Write the figures of bench.compare as tables and a plot, which README and docs/benchmarks.md hold between markers."""

from __future__ import annotations

import json
import os
import platform
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch.utils.flop_counter import FlopCounterMode
from transformers import Florence2ForConditionalGeneration

from bench.competitors import base_config
from bench.decode import BASE, PROMPT_TOKENS, decoder_bytes, read_seconds
from bench.vision import matrix_products

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
JSON = ROOT / "docs" / "benchmarks.json"
PLOT = ROOT / "docs" / "images" / "benchmarks.png"
README, DOCUMENT = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- (\w+): python -m bench.compare -->\n).*?(<!-- end -->)", re.DOTALL)
PACKAGES = ("torch", "transformers", "openvino", "onnxruntime", "nvidia-pytriton")
MANY = 8  # clients, where one number has to do
PROBE_FLOPS = 10**9
PROBE_BYTES = 2**28
COLORS = ("#9a9a9a", "#5f5f5f", "#e3a557", "#c8641b", "#7fb3d8", "#1a6aa8")
Figures = dict[str, Any]


class Kind(NamedTuple):
    """A task and the number of tokens of its answer: with random weights answers do not end by themselves."""

    task: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.task} {self.tokens}"


CAPTION, DETAILED, DETECTION = Kind("<CAPTION>", 20), Kind("<DETAILED_CAPTION>", 60), Kind("<OD>", 100)


def conditions() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


# --- the machine's limit ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What this machine can do per second."""

    bfloat16_flops: float
    float32_flops: float
    bytes_read: float

    @classmethod
    def measure(cls) -> Machine:
        float32, bfloat16 = (PROBE_FLOPS / seconds()[0] for seconds in matrix_products(PROBE_FLOPS).values())
        return cls(bfloat16, float32, PROBE_BYTES / read_seconds(PROBE_BYTES))


@dataclass(frozen=True)
class Work:
    """What an answer needs: `flops` before its first token, and `step_bytes` read for each token."""

    flops: int
    step_bytes: int

    @classmethod
    def of_base(cls) -> Work:
        """Count the work of base geometry on transformers' model without its data."""
        with torch.device("meta"), torch.inference_mode():
            model = Florence2ForConditionalGeneration(base_config()).eval()
            with FlopCounterMode(display=False) as counter:
                features = model.get_image_features(
                    torch.empty(1, 3, BASE.image.height, BASE.image.width)
                ).pooler_output
                prompt = torch.empty(1, PROMPT_TOKENS, BASE.text.d_model)
                model.model.language_model.encoder(inputs_embeds=torch.cat([features, prompt], dim=1))
            int8 = {
                name: torch.empty(tensor.shape, dtype=torch.int8)
                for name, tensor in model.model.language_model.state_dict().items()
                if "embed_tokens" not in name  # shared.weight under other names
            }
        return cls(counter.get_total_flops(), decoder_bytes(int8))

    def answers_per_second(self, machine: Machine, clients: int, tokens: int) -> float:
        """Return the rate of so many clients at a time, whose answers have so many tokens.

        An answer takes the operations of both encoders, at the rate of large bfloat16 matrix products. Each token takes
        one reading of the decoder's int8 weights, which all clients share. Keys and values are not counted.
        """
        reading = tokens * self.step_bytes / clients / machine.bytes_read
        return 1 / (self.flops / machine.bfloat16_flops + reading)


# --- reading figures --------------------------------------------------------------------------------------------------


def load(competitor: Figures, name: str, clients: int) -> Figures | None:
    """Return what was measured under one load, if it was."""
    return next((one for one in competitor["loads"] if (one["load"], one["clients"]) == (name, clients)), None)


def per_second(measured: Figures) -> float:
    return sum(map(len, measured["latencies"].values())) / measured["seconds"]


def latency(measured: Figures, kind: str, share: float) -> float:
    return float(np.percentile(measured["latencies"][kind], share))


def limits(figures: Figures) -> Callable[[int, int], float]:
    """Return (clients, tokens) -> answers per second, by the best rates that the machine showed during the run."""
    machines = [Machine(**machine) for machine in figures["machine"]]
    best = Machine(*(max(getattr(machine, rate) for machine in machines) for rate in Machine.__annotations__))
    work = Work(**figures["work"])
    return lambda clients, tokens: work.answers_per_second(best, clients, tokens)


# --- tables -----------------------------------------------------------------------------------------------------------


def summary(figures: Figures) -> str:
    """Return what README shows: a line per competitor with one client, many clients, memory and quality."""
    lines = [
        f"| | a caption, 1 client | captions per second, {MANY} clients | memory | quality |",
        "|---|---|---|---|---|",
    ]
    for name, competitor in figures["competitors"].items():
        speed = f"{_single(competitor, CAPTION)} | {_rate(competitor, CAPTION.task)}"
        lines.append(f"| {name} | {speed} | {competitor['memory_mib'] / 1024:.1f} GiB | {competitor['score']:.3f} |")
    if "work" in figures:
        one, many = (limits(figures)(clients, CAPTION.tokens) for clients in (1, MANY))
        lines.append(f"| *the machine's limit* | {1 / one:.2f} s | {many:.2f} | | |")
    return "\n".join(lines)


def overview(figures: Figures) -> str:
    """Return a line per competitor: single requests, many clients, mixed load, memory and quality."""
    lines = [
        f"| | caption, 1 client | detection, 1 client | captions/s, {MANY} clients | detections/s, {MANY} clients "
        f"| caption in mixed load, ratio | memory | same answers as transformers | quality |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, competitor in figures["competitors"].items():
        cells = [_single(competitor, CAPTION), _single(competitor, DETECTION)]
        cells += [_rate(competitor, kind.task) for kind in (CAPTION, DETECTION)]
        cells += [_mixed(competitor), f"{competitor['memory_mib'] / 1024:.1f} GiB"]
        cells += [f"{competitor['equal']:.1%}", f"{competitor['score']:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "work" in figures:
        most = limits(figures)
        cells = [f"{1 / most(1, kind.tokens):.2f} s" for kind in (CAPTION, DETECTION)]
        cells += [f"{most(MANY, kind.tokens):.2f}" for kind in (CAPTION, DETECTION)]
        lines.append(f"| *the machine's limit* | {' | '.join(cells)} | | | | |")
    return "\n".join(lines)


def _single(competitor: Figures, kind: Any) -> str:
    measured = load(competitor, kind.task, 1)
    return f"{latency(measured, str(kind), 50):.2f} s" if measured else ""


def _rate(competitor: Figures, name: str) -> str:
    """Return answers per second. A script serves many clients one after the other, so its rate is that of one."""
    measured = load(competitor, name, MANY) or load(competitor, name, 1)
    return f"{per_second(measured):.2f}" if measured else ""


def _mixed(competitor: Figures) -> str:
    """Return the median of captions under mixed load, and its ratio to the median among captions only."""
    mixed, pure = load(competitor, "mixed", MANY), load(competitor, CAPTION.task, MANY)
    if not mixed or not pure:
        return ""
    median = latency(mixed, str(CAPTION), 50)
    return f"{median:.1f} s, {median / latency(pure, str(CAPTION), 50):.1f}x"


def details(figures: Figures) -> str:
    """Return a line per load and task, with a column per competitor."""
    competitors = figures["competitors"]
    names = list(dict.fromkeys(one["load"] for each in competitors.values() for one in each["loads"]))
    seen = {(one["load"], one["clients"]) for each in competitors.values() for one in each["loads"]}
    lines = [f"| | clients | {' | '.join(competitors)} |", "|---|---|" + "---|" * len(competitors)]
    for name, clients in sorted(seen, key=lambda load: (names.index(load[0]), load[1])):
        found = [load(competitor, name, clients) for competitor in competitors.values()]
        kinds = sorted({kind for one in found if one for kind in one["latencies"]})
        for kind in kinds:
            task, tokens = kind.split()
            title = f"`{task}`, {tokens} tokens" + (f", {name}" if name != task else "")
            lines.append(f"| {title} | {clients} | {' | '.join(_cell(one, kind) for one in found)} |")
    return "\n".join(lines)


def _cell(measured: Figures | None, kind: str) -> str:
    """Return answers per second, and the median and 95th percentile of the latency."""
    if not measured or kind not in measured["latencies"]:
        return ""
    rate = len(measured["latencies"][kind]) / measured["seconds"]
    return f"{rate:.2f}/s, {latency(measured, kind, 50):.1f} to {latency(measured, kind, 95):.1f} s"


def conditions_line(figures: Figures) -> str:
    """Describe the machine, the versions, and how steady the machine was."""
    known = figures["conditions"]
    rates = [machine["bfloat16_flops"] / 1e9 for machine in figures["machine"]]
    versions = ", ".join(f"{package} {known[package]}" for package in PACKAGES)
    return textwrap.fill(
        f"{known['cores']} cores of {known['processor']}, no GPU; Python {known['python']}, {versions}. The run took "
        f"{figures['minutes']:.0f} minutes; meanwhile the machine's bfloat16 matrix products, measured before each "
        f"competitor, made {min(rates):.0f} to {max(rates):.0f} GFLOP/s.",
        width=120,
    )


def tables(figures: Figures) -> str:
    return "\n\n".join((overview(figures), details(figures), conditions_line(figures)))


# --- plot -------------------------------------------------------------------------------------------------------------


def draw(figures: Figures, path: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    captions_by_clients(left, figures)
    captions_among_detections(right, figures)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def captions_by_clients(axes: Axes, figures: Figures) -> None:
    for (name, competitor), color in zip(figures["competitors"].items(), COLORS, strict=False):
        found = [one for one in competitor["loads"] if one["load"] == CAPTION.task]
        clients, rates = [one["clients"] for one in found], [per_second(one) for one in found]
        if len(clients) == 1:  # a script serves one after the other
            axes.plot([1, 16], rates * 2, color=color, linestyle="--", label=name)
        else:
            axes.plot(clients, rates, color=color, marker="o", linestyle="-" if len(clients) > 2 else ":", label=name)
    most = limits(figures)
    clients = [1, 2, 4, 8, 16]
    axes.plot(clients, [most(n, CAPTION.tokens) for n in clients], color="black", linewidth=1, label="machine's limit")
    axes.set(xscale="log", xticks=clients, xticklabels=clients, ylim=(0, None), xlabel="clients",
             title=f"captions per second ({CAPTION.tokens} tokens, 3 beams)")  # fmt: skip
    axes.minorticks_off()
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def captions_among_detections(axes: Axes, figures: Figures) -> None:
    """Plot the median and 95th percentile of captions' latency, without and with detections."""
    names = [name for name, one in figures["competitors"].items() if load(one, "mixed", MANY)]
    for offset, (name_of_load, label, color) in enumerate(
        (
            (CAPTION.task, f"{MANY} clients request captions", "#1a6aa8"),
            ("mixed", "half of them request detections", "#c8641b"),
        )
    ):
        found = [load(figures["competitors"][name], name_of_load, MANY) for name in names]
        medians = [latency(one, str(CAPTION), 50) for one in found if one]
        most = [latency(one, str(CAPTION), 95) for one in found if one]
        places = [number + 0.4 * offset - 0.2 for number in range(len(names))]
        axes.barh(places, medians, 0.36, color=color, label=label,
                  xerr=[[0] * len(names), [b - a for a, b in zip(medians, most, strict=True)]], capsize=3)  # fmt: skip
    axes.set(
        yticks=range(len(names)),
        yticklabels=names,
        title="seconds until a caption: median and 95th percentile",
        xlabel=" ",
    )
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


# --- writing ----------------------------------------------------------------------------------------------------------

PLOT_LINK = "![Captions per second by clients, and seconds until a caption in mixed load](images/benchmarks.png)"
BLOCKS: dict[str, Callable[[Figures], str]] = {
    "summary": summary,
    "overview": overview,
    "details": details,
    "conditions": lambda figures: conditions_line(figures) + "\n\n" + PLOT_LINK,
}


def filled(text: str, figures: Figures) -> str:
    """Return the document with new content between its markers."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](figures)}\n{found[3]}", text)


def write(figures: Figures) -> None:
    JSON.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(figures, PLOT)
    for path in (README, DOCUMENT):
        path.write_text(filled(path.read_text(encoding="utf-8"), figures), encoding="utf-8")
