"""A sentence reports what a machine lacks and says what to do."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from florence2.errors import ServerError
from florence2.server import installation, machine

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("system", "processor", "libc", "version", "words"),
    [
        ("Darwin", "arm64", "", "", "runs only on Linux, not on Darwin"),
        ("Linux", "ppc64le", "glibc", "2.39", "exists only for x86_64 and aarch64, not for ppc64le; serve on such"),
        ("Linux", "x86_64", "glibc", "2.34", "glibc 2.35 or newer .* this system has 2.34"),
        ("Linux", "x86_64", "", "", "glibc 2.35 or newer, and this system has another C library"),
    ],
)
def test_other_platforms_are_refused(monkeypatch, system, processor, libc, version, words):
    """NVIDIA's wheel exists only for Linux with a recent glibc, on two kinds of processor."""
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, version))
    with pytest.raises(ServerError, match=words):
        installation.find_wheel()
    assert machine.missing() is not None


def test_this_machine_lacks_nothing():
    """Find all parts on a machine where the live tests run."""
    found = installation.find_wheel()
    assert machine.missing() is None
    for path in (found.tritonserver, found.libraries, found.python_backend, found.stub, found.libpython):
        assert path.exists()


def test_missing_libpython_is_reported_with_the_command_that_installs_it(monkeypatch):
    """A statically linked Python has none; the sentence names the package."""
    monkeypatch.setattr(machine, "_library_folders", lambda: iter([Path("/nowhere")]))
    with pytest.raises(ServerError, match=f"apt install libpython{machine.python_version()}"):
        installation.find_wheel()


def test_missing_wheel_is_reported_with_the_command_that_installs_it(monkeypatch):
    """The client is often installed without the server."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"pip install 'florence2-triton\[serve\]'"):
        installation.find_wheel()


def test_a_wheel_without_a_program_for_this_python_is_refused(monkeypatch):
    """Another release of nvidia-pytriton may support other versions of Python."""
    monkeypatch.setattr(machine, "python_version", lambda: "3.99")
    monkeypatch.setattr(machine, "missing", lambda: None)
    monkeypatch.setattr(machine, "find_libpython", lambda: Path("/lib/libpython3.99.so.1.0"))
    with pytest.raises(ServerError, match=r"the installed nvidia-pytriton lacks \S+/3\.99/\S+; run: pip install"):
        installation.find_wheel()


def test_a_newer_python_runs_only_the_client(monkeypatch):
    """The base install supports any Python from 3.10 on, nvidia-pytriton none after 3.12."""
    monkeypatch.setattr("sys.version_info", types.SimpleNamespace(major=3, minor=13))
    with pytest.raises(ServerError, match=r"needs Python 3\.10, 3\.11 or 3\.12, and this is Python 3\.13, which only"):
        installation.find_wheel()


def test_interpreter_whose_python3_is_another_is_refused(monkeypatch, tmp_path):
    """The stub would run with that other interpreter's packages."""
    (tmp_path / "python3.11").symlink_to(sys.executable)
    (tmp_path / "python3").write_text("another")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3.11"))
    with pytest.raises(ServerError, match="use a virtual environment"):
        installation.find_wheel()


def test_make_install_can_check_before_anything_is_installed():
    """It runs the file with any Python, which may have only the standard library."""
    command = [sys.executable, "-I", "-S", ROOT / "florence2" / "server" / "machine.py"]
    subprocess.run(command, check=True)
    assert "florence2/server/machine.py" in (ROOT / "Makefile").read_text()
