"""Every thing that a machine may lack has a sentence that says what to do."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from florence2.errors import ServerError
from florence2.server import wheel

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("system", "machine", "libc", "version", "words"),
    [
        ("Darwin", "arm64", "", "", "runs on Linux only, not on Darwin"),
        ("Linux", "ppc64le", "glibc", "2.39", "exists for x86_64 and aarch64 only, not for ppc64le"),
        ("Linux", "x86_64", "glibc", "2.34", "glibc 2.35 or newer .* this system has 2.34"),
        ("Linux", "x86_64", "", "", "glibc 2.35 or newer, and this system has another C library"),
    ],
)
def test_other_platforms_are_refused_by_name(monkeypatch, system, machine, libc, version, words):
    """NVIDIA's wheel exists for Linux with a recent glibc on two kinds of processor."""
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, version))
    with pytest.raises(ServerError, match=words):
        wheel.find_wheel()
    assert wheel.what_is_missing() is not None


def test_this_machine_has_all():
    """Where the live tests run, all parts are found."""
    found = wheel.find_wheel()
    assert wheel.what_is_missing() is None
    for path in (found.tritonserver, found.libraries, found.python_backend, found.stub, found.libpython):
        assert path.exists()


def test_missing_libpython_comes_with_the_command_that_brings_it(monkeypatch):
    """A statically linked Python has none; the sentence names the package."""
    monkeypatch.setattr(wheel, "_library_folders", lambda: iter([Path("/nowhere")]))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(ServerError, match=f"apt install libpython{version}"):
        wheel.find_wheel()


def test_missing_package_comes_with_the_command_that_brings_it(monkeypatch):
    """The client is often installed without the server."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"pip install nvidia-pytriton==0\.7\.0"):
        wheel.find_wheel()


def test_python_without_a_stub_is_refused(monkeypatch):
    """The wheel has one stub for every Python version it knows."""
    monkeypatch.setattr("sys.version_info", types.SimpleNamespace(major=3, minor=99))
    with pytest.raises(ServerError, match=r"no models on Python 3\.99, only on 3\.8, 3\.9, 3\.10"):
        wheel.find_wheel()


def test_interpreter_whose_python3_is_another_is_refused(monkeypatch, tmp_path):
    """The stub would run with the packages of that other one."""
    (tmp_path / "python3.11").symlink_to(sys.executable)
    (tmp_path / "python3").write_text("another")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3.11"))
    with pytest.raises(ServerError, match="use a virtual environment"):
        wheel.find_wheel()


def test_the_check_before_an_installation_needs_no_package():
    """`make install` runs it with whatever Python there is: nothing but the standard library can be imported."""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import florence2.server.wheel"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
