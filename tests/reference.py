"""What tests compare with: transformers' own Florence-2 processor, and folders that may be absent."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import Florence2Processor

# The same examples on every run, and no failure because the machine was busy.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
SHARED = Path(__file__).parents[2] / "shared"  # real tokenizers, images and outputs, on machines that have them
REAL = SHARED / "checkpoints" / "Florence-2-base"
CHECKPOINTS = [
    pytest.param(DEMO, id="demo"),
    pytest.param(REAL, id="real", marks=pytest.mark.skipif(not REAL.exists(), reason="no real checkpoint here")),
]


def shared(name: str) -> Path:
    """A file or folder of SHARED; the test is skipped where there is none."""
    if not (SHARED / name).exists():
        pytest.skip(f"no {name} here")
    return SHARED / name


@functools.cache
def processor(checkpoint: Path = DEMO) -> Florence2Processor:
    return Florence2Processor.from_pretrained(checkpoint)


def truncated(value):
    """Return an answer with its coordinates cut to integers, as transformers does."""
    if isinstance(value, dict):
        return {key: truncated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [truncated(item) for item in value]
    return int(value) if isinstance(value, float) else value
