"""What numba compiles, and what of it is kept on disk.

numba keeps a function under its own bytecode and the values it closes over; it does not look at the functions that it
calls. So the entry to the kernels closes over a digest of all their sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

from florence2.engine.cpu.disk import Disk

OPTIONS: dict[str, Any] = dict(nogil=True, error_model="numpy")
compiled = njit(**OPTIONS)
# Sums in any order, and products and sums in one instruction, which vectors need. Infinity and NaN stay what they are.
compiled_loop = njit(**OPTIONS, fastmath={"reassoc", "contract"})


def digest_of_sources(folder: Path) -> int:
    """Return a number of 63 bits that is another one if a Python file of `folder` is changed, added or renamed."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.name} {len(source)} ".encode() + source)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def kept_on_disk(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function for the types of its first call, and keep the result for later processes.

    Its module must have it under its own name.
    """
    dispatcher: Any = compiled(function)
    dispatcher._cache = Disk(function)
    result: Callable[..., None] = dispatcher
    return result
