"""Calibration: monotone maps from the model's confidences to how often it is right, one for each task.

`florence2 calibrate` fits them to labeled images and stores them in the folder of the postprocess model, which applies
them to every answer. A map is found by isotonic regression, so that it reverses no order. It is linear between its
points: steps would make objects of different confidences equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from florence2.answers import Answer, TextAnswer
from florence2.config import read_json
from florence2.errors import CheckpointError

FILE_NAME = "calibration.json"
VERSION = 1
POINTS_TOGETHER = 20  # objects of adjacent confidence whose mean is one observation: single ones overfit the ends
CONFIDENCES = ("confidences", "polygons_confidences")

Numbers: TypeAlias = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Curve:
    """A monotone map: `probabilities` at some `confidences`, both ascending, fitted to so many `objects`."""

    confidences: list[float]
    probabilities: list[float]
    objects: int

    def __call__(self, confidences: Numbers) -> list[float]:
        """Return the probabilities that belong to these confidences; beyond the ends, those of the ends."""
        return [float(value) for value in np.interp(confidences, self.confidences, self.probabilities)]


@dataclass(frozen=True)
class Calibration:
    """The curves of a checkpoint, by task token."""

    curves: Mapping[str, Curve] = field(default_factory=dict)

    def applied(self, task: str, answer: Answer) -> Answer:
        """Return an answer with calibrated confidences, if the task has a curve and the answer has confidences."""
        curve = self.curves.get(task)
        if curve is None or isinstance(answer, TextAnswer):
            return answer
        given = {name: getattr(answer, name, None) for name in CONFIDENCES}
        mapped: dict[str, Any] = {name: curve(values) for name, values in given.items() if values is not None}
        return replace(answer, **mapped)

    def save(self, directory: Path) -> None:
        """Write the file that `load` reads; without curves there is none."""
        path = directory / FILE_NAME
        if not self.curves:
            return path.unlink(missing_ok=True)
        tasks = {task: asdict(curve) for task, curve in self.curves.items()}
        text = json.dumps({"version": VERSION, "tasks": tasks}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Calibration:
        """Return the calibration in a folder, an empty one if there is none. Raises CheckpointError on another file."""
        path = directory / FILE_NAME
        if not path.exists():
            return cls()
        values = read_json(path)
        try:
            if values["version"] != VERSION:
                raise CheckpointError(f"{FILE_NAME} has version {values['version']}; this version reads {VERSION}")
            return cls({task: _checked(curve) for task, curve in values["tasks"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{FILE_NAME} in {directory} is damaged; run florence2 calibrate again") from error


def _checked(values: Mapping[str, Any]) -> Curve:
    """Return the curve; raise ValueError if it is no monotone map of probabilities."""
    curve = Curve(**values)
    for numbers in (curve.confidences, curve.probabilities):
        if not numbers or numbers != sorted(numbers) or not 0 <= numbers[0] <= numbers[-1] <= 1:
            raise ValueError(numbers)
    if len(curve.confidences) != len(curve.probabilities):
        raise ValueError(curve)
    return curve


def fit(confidences: Numbers, correct: Numbers) -> Curve:
    """Return the isotonic regression of `correct` on `confidences`, by pool-adjacent-violators.

    Source: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002.
    """
    order = np.argsort(confidences, kind="stable")
    groups = np.array_split(order, max(1, len(order) // POINTS_TOGETHER))
    blocks: list[tuple[float, float, int]] = []  # mean confidence, share of correct ones, objects
    for group in groups:
        blocks.append((np.take(confidences, group).mean(), np.take(correct, group).mean(), len(group)))
        while len(blocks) > 1 and blocks[-2][1] >= blocks[-1][1]:
            (x, y, n), (other_x, other_y, other_n) = blocks.pop(), blocks.pop()
            both = n + other_n
            blocks.append(((x * n + other_x * other_n) / both, (y * n + other_y * other_n) / both, both))
    # Rounded, or sums could leave equal means in the wrong order.
    return Curve([round(float(x), 6) for x, _, _ in blocks], [round(float(y), 6) for _, y, _ in blocks], len(order))


def expected_calibration_error(confidences: Numbers, correct: Numbers, bins: int = 15) -> float:
    """Return the mean distance of confidence and share of correct objects, over bins of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    given, right = np.asarray(confidences, float), np.asarray(correct, float)
    places = np.minimum((given * bins).astype(int), bins - 1)
    gaps = [abs((given - right)[places == place].sum()) for place in range(bins)]
    return float(sum(gaps) / max(1, len(given)))
