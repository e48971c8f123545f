"""What numba keeps on disk is used again by later processes, until any source of the kernels changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from florence2.engine.cpu import kernels
from florence2.engine.cpu.kernels.compiler import digest_of_sources
from florence2.engine.cpu.kernels.step import build_step, decode

SOURCES = Path(kernels.__file__).parent
# A package in the manner of the kernels: the entry calls a function of another file.
ENTRY = """
from pathlib import Path
from numba import njit
from florence2.engine.cpu.kernels.compiler import digest_of_sources, kept_on_disk
from other import add

def build(digest):
    @kept_on_disk
    def entry(x, y):
        _ = digest
        y[0] = add(x)

    return entry

entry = build(digest_of_sources(Path(__file__).parent))
"""
OTHER = "from numba import njit\n\n@njit\ndef add(x):\n    return x + 1\n"
PROGRAM = """
import numpy as np
from entry import entry
y = np.zeros(1, np.int64)
entry(1, y)
print(y[0], "hit" if entry.stats.cache_hits else "compiled")
"""


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "entry.py").write_text(ENTRY)
    (folder / "other.py").write_text(OTHER)
    return folder


def run(folder: Path, **environment: str) -> str:
    """Return what a new process computes with the package, and whether it had to compile."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{Path.cwd()}", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_change_of_another_file_is_noticed(package, tmp_path, elsewhere):
    """Next to the sources as in NUMBA_CACHE_DIR. numba itself only looks at the file of the entry."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} if elsewhere else {}
    assert run(package, **environment) == "2 compiled"
    assert run(package, **environment) == "2 hit"
    (package / "other.py").write_text(OTHER.replace("x + 1", "x + 5"))
    assert run(package, **environment) == "6 compiled"
    assert run(package, **environment) == "6 hit"
    (package / "other.py").write_text(OTHER)
    assert run(package, **environment) == "2 hit", "the first result is still there"


def test_where_nothing_can_be_written_each_process_compiles(package, tmp_path):
    """A read-only installation without a home works, and leaves nothing behind."""
    (package / "__pycache__").write_text("not a folder")
    (tmp_path / "home").write_text("not a folder")
    environment = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    for _ in range(2):
        assert run(package, **environment) == "2 compiled"


@pytest.mark.parametrize("name", sorted(path.name for path in SOURCES.glob("*.py")))
def test_the_digest_covers_every_source_of_the_kernels(tmp_path, name):
    """A changed comment counts as well: comparing bytes is simple and safe."""
    folder = shutil.copytree(SOURCES, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    assert digest_of_sources(folder) == digest_of_sources(SOURCES)
    with (folder / name).open("a") as file:
        file.write("# changed\n")
    assert digest_of_sources(folder) != digest_of_sources(SOURCES)
    (folder / name).unlink()
    assert digest_of_sources(folder) != digest_of_sources(SOURCES)


def test_the_step_closes_over_the_digest_and_calls_nothing_else():
    """The digest is part of numba's key, and every kernel that the step calls is in the folder that it covers."""
    assert digest_of_sources(SOURCES) in [cell.cell_contents for cell in decode.py_func.__closure__]
    for name in decode.py_func.__code__.co_names:
        kernel = build_step.__globals__.get(name)
        if kernel is not None:
            assert Path(kernel.py_func.__code__.co_filename).parent == SOURCES
