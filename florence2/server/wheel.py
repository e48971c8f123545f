"""Finds what the nvidia-pytriton wheel brings: tritonserver, its libraries, and the stub that runs Python models.

pytriton itself is never imported: it is slow to import and serves another purpose. `find_wheel` is called by
EmbeddedServer before anything is started, and each thing that may be missing has a sentence of its own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from florence2.errors import ServerError

MACHINES = ("x86_64", "aarch64")
# What the wheel is tagged with. Its binaries ask for 2.34, and pip refuses the wheel below 2.35.
GLIBC = (2, 35)


@dataclass(frozen=True)
class Wheel:
    """Paths in the installed wheel, and the libpython that its stub needs."""

    tritonserver: Path
    libraries: Path  # shared libraries that the wheel brings for its own binaries
    python_backend: Path
    caches: Path
    stub: Path
    libpython: Path


def find_wheel() -> Wheel:
    """Raises ServerError naming what is missing on this machine and how to get it."""
    _require_platform(platform.system(), platform.machine(), *platform.libc_ver())
    require_python3_beside_us()
    package = _find_package("pytriton")
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = sorted((path.name for path in stub.parent.parent.glob("3.*")), key=lambda name: int(name[2:]))
        raise ServerError(f"nvidia-pytriton runs no models on Python {version}, only on {', '.join(known)}")
    return Wheel(
        tritonserver=root / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=root / "backends" / "python",
        caches=root / "caches",
        stub=stub,
        libpython=_find_libpython(),
    )


def what_is_missing() -> str | None:
    """What of this machine or this Python keeps tritonserver from running, as a sentence; `make install` asks first."""
    try:
        _require_platform(platform.system(), platform.machine(), *platform.libc_ver())
        _find_libpython()
    except ServerError as error:
        return str(error)
    return None


def _require_platform(system: str, machine: str, libc: str, libc_version: str) -> None:
    """NVIDIA's wheel exists for Linux with a recent glibc on two kinds of processor."""
    if system != "Linux":
        raise ServerError(f"the embedded Triton runs on Linux only, not on {system}; use Docker here")
    if machine not in MACHINES:
        raise ServerError(f"the embedded Triton exists for {' and '.join(MACHINES)} only, not for {machine}")
    needed = ".".join(map(str, GLIBC))
    if libc != "glibc":
        raise ServerError(f"the embedded Triton needs glibc {needed} or newer, and this system has another C library")
    if tuple(int(part) for part in libc_version.split(".")[:2]) < GLIBC:
        raise ServerError(
            f"the embedded Triton needs glibc {needed} or newer (Ubuntu 22.04, Debian 12, RHEL 10 or later), "
            f"and this system has {libc_version}; use Docker here"
        )


def require_python3_beside_us() -> None:
    """The stub's interpreter ignores PYTHONPATH and PYTHONHOME; it takes over the environment of `python3` on PATH."""
    python3 = Path(sys.executable).with_name("python3")
    if not (python3.exists() and python3.samefile(sys.executable)):
        raise ServerError(f"{sys.executable} has no python3 beside it that is the same; use a virtual environment")


def _find_package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError("the nvidia-pytriton package is not installed; run: pip install nvidia-pytriton==0.7.0")
    package = Path(spec.submodule_search_locations[0])
    if not (package / "tritonserver" / "bin" / "tritonserver").is_file():
        raise ServerError(
            "the installed nvidia-pytriton holds no tritonserver; run: pip install nvidia-pytriton==0.7.0"
        )
    return package


def _find_libpython() -> Path:
    """The stub is linked to the shared libpython, which a statically linked `python` comes without."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    for folder in _library_folders():
        if (folder / name).is_file():
            return folder / name
    raise ServerError(
        f"{name} is missing, which tritonserver needs to run Python models; on Debian and Ubuntu run: apt install "
        f"libpython{version}; with pyenv rebuild Python: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {version}"
    )


def _library_folders() -> Iterator[Path]:
    """This interpreter's own folders first, then wherever the system's loader looks."""
    yield Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    yield Path(sys.base_prefix) / "lib"
    yield from _loader_folders()


def _loader_folders() -> Iterator[Path]:
    yield from (Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder)
    ldconfig = next((path for path in ("/sbin/ldconfig", "/usr/sbin/ldconfig") if Path(path).exists()), None)
    if ldconfig:
        listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
        for line in listing.splitlines():  # "  libpython3.11.so.1.0 (libc6,x86-64) => /lib/.../libpython3.11.so.1.0"
            if " => " in line:
                yield Path(line.rpartition(" => ")[2]).parent
