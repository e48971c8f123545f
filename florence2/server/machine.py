"""Check what a machine needs to run the embedded server.

`make install` runs this file before anything is installed, so it imports only the standard library.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PYTHONS = ("3.10", "3.11", "3.12")  # nvidia-pytriton has a program to run Python models for each of these
MACHINES = ("x86_64", "aarch64")
# From the wheel's tag. Its binaries need 2.34, but pip refuses the wheel below 2.35.
GLIBC = (2, 35)


def python_version() -> str:
    """Return this interpreter's version as MAJOR.MINOR."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def missing() -> str | None:
    """Return a sentence on what this machine or this Python lacks and what to do, or None if nothing is missing."""
    system, machine, (libc, libc_version) = platform.system(), platform.machine(), platform.libc_ver()
    needed = ".".join(map(str, GLIBC))
    if system != "Linux":
        return f"the embedded Triton runs only on Linux, not on {system}; use Docker here"
    if machine not in MACHINES:
        return (
            f"the embedded Triton exists only for {' and '.join(MACHINES)}, not for {machine}; serve on such a machine"
        )
    if libc != "glibc":
        return (
            f"the embedded Triton needs glibc {needed} or newer, and this system has another C library; use Docker here"
        )
    if tuple(int(part) for part in libc_version.split(".")[:2]) < GLIBC:
        return (
            f"the embedded Triton needs glibc {needed} or newer (Ubuntu 22.04, Debian 12, RHEL 10 or later), "
            f"and this system has {libc_version}; use Docker here"
        )
    if python_version() not in PYTHONS:
        return (
            f"the embedded Triton needs Python {', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}, and this is Python "
            f"{python_version()}, which only the client supports; install one of these"
        )
    if find_libpython() is None:
        return (
            f"{_libpython()} is missing, which tritonserver needs to run Python models; on Debian and Ubuntu run: "
            f"apt install libpython{python_version()}; with pyenv rebuild Python: "
            f"PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {python_version()}"
        )
    return None


def find_libpython() -> Path | None:
    """Return the shared libpython, which Triton's program for Python models needs, or None, as with a static Python."""
    return next((folder / _libpython() for folder in _library_folders() if (folder / _libpython()).is_file()), None)


def _libpython() -> str:
    return f"libpython{python_version()}.so.1.0"


def _library_folders() -> Iterator[Path]:
    """Yield this interpreter's own folders first, then those of the system's loader."""
    yield Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    yield Path(sys.base_prefix) / "lib"
    yield from (Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder)
    ldconfig = next((path for path in ("/sbin/ldconfig", "/usr/sbin/ldconfig") if Path(path).exists()), None)
    if ldconfig:
        listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
        for line in listing.splitlines():  # "  libpython3.11.so.1.0 (libc6,x86-64) => /lib/.../libpython3.11.so.1.0"
            if " => " in line:
                yield Path(line.rpartition(" => ")[2]).parent


if __name__ == "__main__":
    sys.exit(missing())
