"""Share one running server among the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from florence2.server import EmbeddedServer


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository, http_port=0, grpc_port=0, metrics_port=0, stream=True) as running:
        yield running
