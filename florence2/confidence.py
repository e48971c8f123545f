"""How sure the model is of what it located, from its own probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

EDGES = 4  # of a box


def confidence(label_mass: float | None, masses: Sequence[float | None]) -> float | None:
    """Return the probability that a label and all four edges are right; None if a log mass is unknown.

    It is the product of the probabilities of the label's tokens and of the neighborhoods of the four locations. An
    outline has more points, and would be doubted for its length only: their geometric mean stands in for each of four.

    label_mass: the sum of the log masses of the label's tokens. masses: the log masses of the locations.
    """
    sum_of_masses = total(masses)
    if label_mass is None or sum_of_masses is None:
        return None
    return math.exp(label_mass + EDGES * sum_of_masses / len(masses))


def total(logarithms: Sequence[float | None]) -> float | None:
    """Return the sum, or None if one of them is unknown, or if there are none."""
    known = [value for value in logarithms if value is not None]
    return sum(known) if known and len(known) == len(logarithms) else None
