"""Check that the NVIDIA driver and the installed CUDA packages fit together, before anything is started.

`make install` runs this file to learn whether there is a GPU, so it imports only the standard library.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path

# The CUDA version that PyPI's torch 2.13 and onnxruntime-gpu are built for. Drivers from 580 on support it.
CUDA = (13, 0)
HIDE = "or set CUDA_VISIBLE_DEVICES= to serve on the CPU"
INSTALL_TORCH = "pip uninstall -y torch; pip install torch==2.13.0"
INSTALL_ONNXRUNTIME = "pip uninstall -y onnxruntime; pip install --force-reinstall --no-deps onnxruntime-gpu"
Version = tuple[int, int]


def driver_cuda() -> Version | None:
    """Return the newest CUDA version that the NVIDIA driver supports, None without a driver or a visible GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10  # 12040 is 12.4


def visible_gpus() -> list[str]:
    """Return the GPUs that programs may use, each as a value of CUDA_VISIBLE_DEVICES."""
    if driver_cuda() is None:
        return []
    count = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
    chosen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (chosen or [str(number) for number in range(count.value)])[: count.value]


def package_cuda(package: str, file: str) -> Version | None:
    """Return the CUDA version that a package was built for, from a file in it; None for a CPU build or no package.

    The package is not imported, which would take seconds.
    """
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / file).is_file():
        return None
    found = re.search(r"^cuda(?:_version)?\b.*= *'(\d+)\.(\d+)", (folder / file).read_text(encoding="utf-8"), re.M)
    return (int(found[1]), int(found[2])) if found else None


def problem(own_onnxruntime: bool = True) -> str | None:
    """Return a sentence on why this machine's GPU cannot be used, with the remedy. None if it can, or there is none.

    `own_onnxruntime`: whether the Python package runs the encoder, rather than Triton's C++ backend.
    """
    driver = driver_cuda()
    if driver is None:
        return None
    torch = package_cuda("torch", "version.py")
    if torch is None:
        return f"this repository is for GPUs, and the installed torch is a CPU build; run `{INSTALL_TORCH}`, {HIDE}"
    if torch[0] > driver[0]:
        return (
            f"the NVIDIA driver supports CUDA {_text(driver)} at most, and the installed torch needs {_text(torch)}; "
            f"install a newer driver (580 or later supports CUDA {_text(CUDA)}), {HIDE}"
        )
    if not own_onnxruntime:
        return None
    onnxruntime = package_cuda("onnxruntime", "capi/build_and_package_info.py")
    if onnxruntime is None:
        return f"this repository is for GPUs, and onnxruntime is a CPU build; run `{INSTALL_ONNXRUNTIME}`, {HIDE}"
    if onnxruntime[0] != torch[0]:  # it uses the libraries that torch's packages bring
        return (
            f"the installed onnxruntime-gpu is for CUDA {_text(onnxruntime)} and torch for CUDA {_text(torch)}; "
            "install builds for the same CUDA release"
        )
    return None


def _text(version: Version) -> str:
    return ".".join(map(str, version))


def main() -> int:
    """Return 0 if there is a GPU that PyPI's packages support, 1 if there is none; explain what does not fit."""
    driver = driver_cuda()
    if driver is None:
        return 1
    if driver < CUDA:
        print(
            f"This machine's NVIDIA driver supports CUDA {_text(driver)} at most. PyPI's torch needs {_text(CUDA)}, so "
            "the CPU build is installed; for the GPU install driver 580 or later.", file=sys.stderr,
        )  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
