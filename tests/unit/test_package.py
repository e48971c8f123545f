"""What `python -m build` makes: a wheel with three packages and their data, the same from the source distribution."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import florence2

ROOT = Path(__file__).parents[2]
PACKAGES = ("florence2", "client/florence2_client", "client/florence2_command", "export/florence2_export")
SOURCES = ("client", "export", "florence2", "model_repository", "tests/unit/docs")  # tests, to see that they stay out
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml")
EXTRAS = {"models", "serve", "gpu", "export", "heif", "pdf", "cli", "ui", "gateway", "mcp", "bench", "dev"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Return the folder of a source distribution and of the wheel built from it, made from a copy of the checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copytree(
            ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in FILES:
        shutil.copy(ROOT / name, checkout)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", checkout / "dist", checkout]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "would be ignored" not in output, output  # by a later setuptools, which warns of it
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    assert path.name == f"florence2_triton-{florence2.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def tracked_files() -> set[str]:
    """Return the files of the packages by their names in the wheel, with the templates that the export links to."""
    folders = {Path(package).name: ROOT / package for package in PACKAGES}
    folders["florence2_export/model_repository"] = ROOT / "model_repository"
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_the_wheel_has_all_files_of_the_packages_and_no_others(wheel):
    """Code, py.typed, the page's assets, configs and templates; neither tests nor docs."""
    contents = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert contents == tracked_files()
    assert {"florence2/py.typed", "florence2_client/page/region.js", "florence2_export/targets/gpu.pbtxt",
            "florence2_export/model_repository/florence2_decoder/1/model.py"} < contents  # fmt: skip


def test_the_wheel_describes_itself(wheel):
    """Version, license, Python, program and extras."""
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert metadata["Version"] == florence2.__version__ and metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT" and f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert set(metadata.get_all("Provides-Extra")) >= EXTRAS
    assert "florence2 = florence2_command:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_the_source_distribution_has_what_the_wheel_needs(built):
    """The wheel was built from it; it also has the changelog and the tested versions, and no tests."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*FILES, "florence2/py.typed"} <= names
    assert not [name for name in names if re.match(r"(tests|docs|demo|bench|build)\b", name)]
