"""Share one running server among the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(ServingOptions.on_free_ports(repository, stream=True)) as running:
        yield running
