"""What numba keeps on disk is used again by later processes, until any source of the kernels changes."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numba.core import config

from florence2.engine.cpu import disk, kernels
from florence2.engine.cpu.kernels.compiler import digest_of_sources
from florence2.engine.cpu.kernels.step import build_step, decode
from florence2.errors import ServerError

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
print(y[0])
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "entry.py").write_text(ENTRY)
    (folder / "other.py").write_text(OTHER)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    yield folder
    forget_modules()


def forget_modules() -> None:
    for name in ("entry", "other"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(monkeypatch, caplog):
    """run(folder): what the package of a folder computes after a new import, and whether it had to be compiled."""

    def run_in(folder: Path) -> str:
        forget_modules()
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            entry = importlib.import_module("entry").entry
            y = np.zeros(1, np.int64)
            entry(1, y)
        assert not entry.stats.cache_misses, "compiled in this process"
        return f"{y[0]} {'compiled' if 'compiling the decoder' in caplog.text else 'hit'}"

    return run_in


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a process that computes with the package."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": f"{folder}:{Path.cwd()}", "NUMBA_CACHE_DIR": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> str:
    """Return what a process computed, and whether it had to compile."""
    output, log = process.communicate()
    assert not process.returncode, log
    return f"{output.strip()} {'compiled' if 'compiling the decoder' in log else 'hit'}"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_change_of_another_file_is_noticed(package, tmp_path, monkeypatch, run, elsewhere):
    """Next to the sources as in NUMBA_CACHE_DIR. numba itself only looks at the file of the entry."""
    if elsewhere:
        monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    assert run(package) == "2 compiled"
    assert run(package) == "2 hit"
    (package / "other.py").write_text(OTHER.replace("x + 1", "x + 5"))
    assert run(package) == "6 compiled"
    assert run(package) == "6 hit"
    (package / "other.py").write_text(OTHER)
    assert run(package) == "2 hit", "the first result is still there"
    assert (tmp_path / "cache").exists() is elsewhere


@pytest.fixture
def nothing_can_be_written(package, tmp_path, monkeypatch) -> Path:
    """Neither next to the package nor at home; return the folder for temporary files."""
    (package / "__pycache__").write_text("not a folder")
    (tmp_path / "home").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


def test_where_nothing_can_be_written_each_process_compiles(package, nothing_can_be_written, run):
    """A read-only installation without a home works, and leaves nothing behind."""
    for _ in range(2):
        assert run(package) == "2 compiled"
        assert sys.modules["entry"].entry._cache.folder is None
    assert not list(nothing_can_be_written.iterdir())


def test_processes_that_start_together_compile_once(package):
    """The two engines of `serve --stream` start together; one compiles, and the other waits for the result."""
    processes = [start(package) for _ in range(2)]
    assert sorted(map(result, processes)) == ["2 compiled", "2 hit"]


def test_what_an_image_ships_is_used_where_it_cannot_be_written(package, tmp_path, monkeypatch, run):
    """`florence2 compile` runs as root when an image is built, and the server as another user."""
    assert run(package) == "2 compiled"
    copied = shutil.copytree(package, tmp_path / "copied")
    for path in copied.rglob("*"):
        os.utime(path, (0, 0))  # as the layers of an image can have other time stamps
    monkeypatch.setattr(disk, "_can_be_written", lambda _folder: pytest.fail("looks for a place to write"))
    assert run(copied) == "2 hit"
    assert sys.modules["entry"].entry._cache.folder == copied / "__pycache__"


def test_another_cpu_compiles_again(package, run):
    """An image may be built on another CPU. Both results stay."""
    assert run(package) == "2 compiled"
    assert result(start(package, NUMBA_CPU_NAME="generic")) == "2 compiled"
    assert run(package) == "2 hit"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_file_is_replaced(package, run, suffix):
    """A machine that lost its power can leave an empty file."""
    assert run(package) == "2 compiled"
    for path in (package / "__pycache__").glob(f"*.{suffix}"):
        path.write_bytes(b"")
    assert run(package) == "2 compiled"
    assert run(package) == "2 hit"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "the process for it was ended by SIGKILL, perhaps because memory ran out"),
        ("raise OSError(28, 'No space left on device')", "OSError: [Errno 28] No space left on device"),
        ("add = njit(lambda x: x.nothing)", "TypingError: Failed in nopython mode pipeline (step: nopython frontend)"),
    ],
    ids=["killed", "full disk", "does not compile"],
)  # fmt: skip
def test_a_failed_compilation_is_one_sentence(package, run, other, reason):
    """It is what a server says that cannot start."""
    only_there = "import __main__, os\nif hasattr(__main__, 'compile_task'): "
    (package / "other.py").write_text(f"{OTHER}{only_there}{other}\n")
    with pytest.raises(ServerError) as caught:
        run(package)
    assert str(caught.value) == f"the decoder cannot be compiled: {reason}"


def test_a_process_that_cannot_be_started_is_one_sentence(package, run, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(package / "missing"))
    with pytest.raises(
        ServerError, match=r"^the decoder cannot be compiled, since no process can be started for it: \[Errno 2\]"
    ):
        run(package)


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
