"""The exported encoder as it is served on this device: the features of a CPU, in every batch."""

from __future__ import annotations

import numpy as np
import pytest

from florence2.triton.onnx_session import open_session
from florence2_export.repository import read_config
from florence2_export.targets import as_triton_passes_it


def features(repository, pixels, gpu):
    model = repository / "florence2_vision"
    session = open_session(model / "1" / "model.onnx", as_triton_passes_it(read_config(model)), gpu)
    return session.run({"PIXELS": pixels})["IMAGE_FEATURES"]


@pytest.mark.parametrize(("precision", "largest", "mean"), [("float32", 1e-3, 1e-4), ("float16", 0.1, 0.005)])
def test_features_are_those_of_a_cpu(exported, device, precision, largest, mean):
    """No TF32 in float32. The bounds are those of the parity report and ten times what float16's rounding makes."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 192, 192, 3), dtype=np.uint8)
    gpu = 0 if device == "cuda" else None
    exact = features(exported("float32"), pixels, None)
    for batch in (1, 3, 8):
        errors = np.abs(features(exported(precision), pixels[:batch], gpu) - exact[:batch])
        assert errors.max() <= largest and errors.mean() <= mean
