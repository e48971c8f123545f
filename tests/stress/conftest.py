"""Sizes of the stress tests and the repository that they serve, both from the environment."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Sizes:
    """How long and how large the tests are. STRESS_MINUTES sets `minutes`, and so on."""

    minutes: float = 60.0  # of mixed traffic
    rate: float = 1.5  # its requests per second
    requests: int = 100_000  # through the engine
    images: int = 300  # damaged, unusual and good
    crowd: int = 500  # clients that send in the same moment
    seconds: float = 60.0  # until those of them that still wait give up
    misbehaving: int = 100  # clients of each kind

    @classmethod
    def from_environment(cls) -> Sizes:
        types = {"int": int, "float": float}
        given = {field: os.environ.get(f"STRESS_{field.name.upper()}") for field in dataclasses.fields(cls)}
        return cls(**{field.name: types[str(field.type)](text) for field, text in given.items() if text})


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    return Sizes.from_environment()


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest) -> Path:
    """The repository of STRESS_REPOSITORY, by default an export of the bundled checkpoint."""
    path = os.environ.get("STRESS_REPOSITORY")
    return Path(path) if path else request.getfixturevalue("repository")
