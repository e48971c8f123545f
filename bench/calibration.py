"""Measure what confidences are worth: on degraded scenes, by average precision and expected calibration error.

    python -m bench.calibration [REPOSITORY] [--scenes 2000] [--diagram docs/images/reliability.png]

A blurred, noisy, partly hidden or distant object is found less often, and the model should know it. Half of the scenes
fit the maps as `florence2 calibrate` does, and all numbers are those of the other half. Prints the table of
docs/confidences.md and draws its diagram. REPOSITORY holds the bundled checkpoint, not calibrated.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bench.harness import embedded_server
from demo.__main__ import REPOSITORY
from florence2.calibration import expected_calibration_error, fit
from florence2.tasks import TASKS
from florence2_client import Client
from florence2_client.calibration import Judged, judge
from florence2_client.labeled import LabeledImage
from tools.toy_model import scenes
from tools.toy_model.shapes import Box

SIDE = 320
FIRST_SEED = 910_000  # no scene of training, evaluation, tests or the demo
BINS = 15
MEASURED = ("<OD>", "<REGION_PROPOSAL>")


def degraded(seed: int) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Return an image of a scene that may be far away, hidden, blurred or noisy, and its objects: kind and box."""
    chance = random.Random(seed)
    scene = scenes.make_scene(seed)
    image, boxes = scene.draw(SIDE), [(shape.kind, shape.box) for shape in scene.shapes]
    zoom = chance.choice([1.0, 1.0, 0.6, 0.4, 0.25])
    if zoom < 1:
        small = image.resize((round(SIDE * zoom),) * 2, Image.Resampling.LANCZOS)
        place = tuple(chance.randrange(SIDE - small.width) for _ in range(2))
        image = Image.new("RGB", image.size, scene.background.first)
        image.paste(small, place)
        boxes = [
            (kind, tuple(zoom * edge + by / SIDE for edge, by in zip(box, 2 * place, strict=True)))
            for kind, box in boxes
        ]
    for _ in range(chance.choice([0, 0, 2, 5])):
        x, y, width, height = chance.random(), chance.random(), chance.uniform(0.05, 0.3), chance.uniform(0.05, 0.3)
        gray = (chance.randrange(90, 170),) * 3
        corners = [SIDE * edge for edge in (x, y, x + width, y + height)]
        ImageDraw.Draw(image).rectangle(corners, fill=gray)
    image = image.filter(ImageFilter.GaussianBlur(chance.choice([0, 0, 2, 5, 10])))
    noise = np.random.default_rng(seed).normal(0, chance.choice([0, 0, 20, 50, 90]), (SIDE, SIDE, 3))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image, [(kind, tuple(SIDE * edge for edge in box)) for kind, box in boxes]


def draw_scenes(folder: Path, seeds: Sequence[int]) -> list[LabeledImage]:
    """Draw scenes into a folder."""
    images = []
    for seed in seeds:
        image, objects = degraded(seed)
        image.save(path := folder / f"{seed}.png")
        images.append(LabeledImage(path, objects))
    return images


def average_precision(order: Sequence[float], correct: Sequence[bool], labeled: int) -> float:
    """Return COCO's average precision at an overlap of 0.5, over all labels together, in 101 steps of recall."""
    right = np.asarray(correct)[np.argsort(-np.asarray(order), kind="stable")].cumsum()
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(right / labeled, np.linspace(0, 1, 101))
    return float(np.append(precision, 0.0)[places].mean())


def rows(task: str, fitted: Judged, found: Judged) -> tuple[str, list[float]]:
    """Return a row of the table, and the calibrated confidences."""
    calibrated = fit(fitted.confidences, fitted.correct)(found.confidences)
    chance = np.random.default_rng(0)
    constant = np.mean(
        [average_precision(chance.random(len(found.correct)), found.correct, found.labeled) for _ in range(20)]
    )
    precisions = [average_precision(order, found.correct, found.labeled) for order in (found.scores, found.confidences)]
    errors = [expected_calibration_error(given, found.correct, BINS) for given in (found.confidences, calibrated)]
    share = sum(found.correct) / len(found.correct)
    cells = [f"`{task}`", f"{len(found.correct):,} of {found.labeled:,}", f"{share:.0%}", f"{constant:.3f}"]
    return " | ".join([*cells, *(f"{number:.3f}" for number in precisions + errors)]), calibrated


def diagram(path: Path, panels: dict[str, tuple[Judged, list[float]]]) -> None:
    """Draw how often objects of a confidence are right, before and after calibration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.4), sharey=True)
    for axis, (task, (found, calibrated)) in zip(axes, panels.items(), strict=True):
        axis.plot([0, 1], [0, 1], "--", color="gray", label="perfect")
        for name, given in ("before", found.confidences), ("after", calibrated):
            places = np.minimum((np.asarray(given) * BINS).astype(int), BINS - 1)
            kept = [place for place in range(BINS) if (places == place).sum() >= 10]
            means = [
                (np.asarray(given)[places == p].mean(), np.asarray(found.correct)[places == p].mean()) for p in kept
            ]
            axis.plot(*zip(*means, strict=True), "o-", label=f"{name} calibration")
        axis.set(title=TASKS[task].name, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
        axis.legend(loc="upper left")
    axes[0].set_ylabel("share of objects that are right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("repository", nargs="?", type=Path, default=REPOSITORY)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--diagram", type=Path, metavar="FILE.png", help="needs matplotlib")
    options = parser.parse_args()
    panels = {}
    print("| task | found | right | AP constant | AP by `scores` | AP by `confidences` | error | error calibrated |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, embedded_server(options.repository) as server:
        images = draw_scenes(Path(folder), range(FIRST_SEED, FIRST_SEED + options.scenes))
        with Client(server.grpc_url) as client:
            for task in MEASURED:
                fitted, found = (judge(client, half, task, 8) for half in (images[::2], images[1::2]))
                row, calibrated = rows(task, fitted, found)
                print(f"| {row} |", flush=True)
                panels[task] = found, calibrated
    if options.diagram:
        diagram(options.diagram, panels)


if __name__ == "__main__":
    main()
