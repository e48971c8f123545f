"""Monotone maps from confidences to shares of right objects."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2 import calibration
from florence2.answers import Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.calibration import Calibration, Curve, expected_calibration_error, fit
from florence2.errors import CheckpointError

CURVE = Curve([0.2, 0.6], [0.1, 0.9], 100)


def test_equal_confidences_make_a_map_that_can_be_read(tmp_path):
    """The means of groups of them differ in their last bits."""
    curve = fit([0.7 + 0.1] * 390 + [0.3] * 7, [place % 40 < place // 10 for place in range(397)])
    Calibration({"<OD>": curve}).save(tmp_path)
    assert Calibration.load(tmp_path).curves["<OD>"] == curve


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_a_map_is_monotone_and_within_0_and_1(observed):
    """Whatever was observed; and it changes the order of no two confidences."""
    confidences, correct = zip(*observed, strict=True)
    curve = fit(confidences, correct)
    mapped = curve(np.linspace(0, 1, 101))
    assert mapped == sorted(mapped) and 0 <= mapped[0] <= mapped[-1] <= 1


def test_a_map_is_isotonic_regression(monkeypatch):
    """By its max-min formula, where each observation is its own group."""
    monkeypatch.setattr(calibration, "POINTS_TOGETHER", 1)
    random = np.random.default_rng(0)
    confidences = np.sort(random.random(60))
    correct = random.random(60) < confidences**2

    def least_mean(first):
        return [min(correct[first : last + 1].mean() for last in range(place, 60)) for place in range(first, 60)]

    table = [[0.0] * first + least_mean(first) for first in range(60)]
    expected = np.max(table, axis=0)
    curve = fit(confidences, correct)
    assert curve.probabilities == pytest.approx(sorted(set(expected.round(9))), abs=1e-6)


@pytest.mark.parametrize("power", [0.5, 1, 3])
def test_mapped_confidences_are_calibrated(power):
    """On observations that the map was not fitted to."""
    random = np.random.default_rng(0)
    confidences = random.random(8000)
    correct = random.random(8000) < confidences**power
    curve = fit(confidences[:4000], correct[:4000])
    assert expected_calibration_error(curve(confidences[4000:]), correct[4000:]) < 0.03


def test_the_error_is_the_mean_gap_over_bins():
    """Weighted by the objects in each; 1.0 belongs to the last bin."""
    assert expected_calibration_error([0.9, 0.9, 0.1], [True, False, False], bins=2) == pytest.approx(
        (2 * 0.4 + 0.1) / 3
    )
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    assert expected_calibration_error([], []) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Boxes([[1, 2, 3, 4]] * 3, ["a"] * 3, [0.1] * 3, [0.0, 0.4, 1.0]), {"confidences": [0.1, 0.5, 0.9]}),
        (Quads([[1] * 8], ["a"], [0.4]), {"confidences": [0.5]}),
        (Polygons([[[1, 2]]], [""], [0.4]), {"confidences": [0.5]}),
        (
            BoxesAndPolygons([[1, 2, 3, 4]], ["a"], [[[1, 2]]], ["b"], [0.1], [0.4], [0.2]),
            {"confidences": [0.5], "polygons_confidences": [0.1]},
        ),
    ],
)
def test_only_confidences_are_mapped(answer, expected):
    mapped = Calibration({"<OD>": CURVE}).applied("<OD>", answer)
    for name, values in vars(answer).items():
        assert getattr(mapped, name) == (pytest.approx(expected[name]) if name in expected else values)
    assert Calibration({"<OD>": CURVE}).applied("<OCR>", answer) is answer


def test_what_has_no_confidences_stays():
    for answer in (TextAnswer("a dog"), Boxes([[1, 2, 3, 4]], ["a"])):
        assert Calibration({"<OD>": CURVE}).applied("<OD>", answer) == answer


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    """Without curves there is no file."""
    Calibration({"<OD>": CURVE}).save(tmp_path)
    assert Calibration.load(tmp_path) == Calibration({"<OD>": CURVE})
    Calibration().save(tmp_path)
    assert not list(tmp_path.iterdir()) and Calibration.load(tmp_path) == Calibration()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"tasks": []},
        {"tasks": {"<OD>": {"confidences": [0.1], "probabilities": [0.1]}}},
        {"tasks": {"<OD>": {"confidences": [0.1], "probabilities": [1.1], "objects": 1}}},
        {"tasks": {"<OD>": {"confidences": [0.1, 0.2], "probabilities": [0.4, 0.3], "objects": 1}}},
        {"tasks": {"<OD>": {"confidences": [0.1, 0.2], "probabilities": [0.4], "objects": 1}}},
        {"tasks": {"<OD>": {"confidences": [], "probabilities": [], "objects": 1}}},
    ],
    ids=str,
)
def test_another_file_is_refused(tmp_path, change):
    """With its name."""
    (tmp_path / "calibration.json").write_text(json.dumps({"version": 1, "tasks": {}} | change))
    with pytest.raises(CheckpointError, match="calibration"):
        Calibration.load(tmp_path)
