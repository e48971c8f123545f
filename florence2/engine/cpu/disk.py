"""Keep compiled functions on disk, and compile them in a separate process.

LLVM leaves some 160 MB in the process in which it compiles, so a separate one compiles, and all processes load the
result.

Results are looked for in these folders, and written to the first that can be written:

- NUMBA_CACHE_DIR;
- __pycache__ next to the function's file, which `florence2 compile` fills if servers cannot write there;
- the user's cache folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from numba.core import caching, config
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from florence2.errors import ServerError

LOCK = "florence2-compile.lock"
CHILD = "from florence2.engine.cpu.disk import compile_task; compile_task()"
log = logging.getLogger(__name__)


class Disk(caching.NullCache):
    """The cache in which numba looks for a function's results. If no folder has one, another process compiles it.

    That process imports the function from its module by name.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self._folders = folders_for(Path(function.__code__.co_filename))
        self.folder: Path | None = None  # of the result that was loaded last, unless it is gone again

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the function for these types, or None if numba must compile it here.

        Raise ServerError if it cannot be compiled.
        """
        if found := self._find(self._folders, signature, target):
            return found
        with contextlib.ExitStack() as cleanup:
            folder = next(filter(_can_be_written, self._folders), None)
            if folder is None:
                try:
                    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="florence2-compile-")))
                except OSError:
                    return None
            cleanup.enter_context(_locked(folder / LOCK))
            if found := self._find([folder], signature, target):  # another process compiled it meanwhile
                return found
            log.warning("compiling the decoder for this CPU; this takes 20 s or more, once")
            _compile_elsewhere(folder, self._function, signature)
            return self._find([folder], signature, target)

    def _find(self, folders: list[Path], signature: Any, target: Any) -> Any:
        for folder in folders:
            cache = cache_in(folder, self._function)
            try:
                if found := cache.load_overload(signature, target):
                    self.folder = folder if folder in self._folders else None
                    return found
            except Exception as error:  # a damaged file can raise anything
                log.warning("what was compiled in %s cannot be read (%s), so it is compiled again", folder, error)
                with contextlib.suppress(OSError):
                    cache.flush()
        return None


def folders_for(file: Path) -> list[Path]:
    """Return where a file's functions are looked for, in this order."""
    package = caching._CacheLocator.get_suitable_cache_subpath(file)
    given = [Path(config.CACHE_DIR) / package] if config.CACHE_DIR else []
    return [*given, file.parent / "__pycache__", Path(AppDirs("numba", False).user_cache_dir) / package]


def cache_in(folder: Path, function: Callable[..., None]) -> Any:
    """Return numba's cache of a function in a folder, which only has to be written when a result is saved.

    numba's own locators skip folders that cannot be written, and compare the file's time stamp, which changes with each
    installation. Here the function closes over a digest of its sources, which is a part of the key of its results.
    """

    class Locator(caching._CacheLocator):
        def get_cache_path(self) -> str:
            return str(folder)

        def get_source_stamp(self) -> str:
            return ""

        def get_disambiguator(self) -> str:
            return "florence2"

        @classmethod
        def from_function(cls, _function: Any, _file: Any) -> Locator:
            return cls()

    class Implementation(caching.CompileResultCacheImpl):
        _locator_classes = (Locator,)

    class Cache(caching.FunctionCache):
        _impl_class = Implementation

    return Cache(function)


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for other processes that compile into the same folder, if the file system supports locks."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile_elsewhere(folder: Path, function: Callable[..., None], signature: Any) -> None:
    """Compile into the folder in another process. Raise ServerError if that fails."""
    task = dumps((str(folder), function.__module__, function.__name__, signature))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        # In Triton's model processes sys.executable is the first python3 on PATH.
        process = subprocess.run([sys.executable, "-c", CHILD], input=task, env=environment, capture_output=True)
    except OSError as error:
        raise ServerError(f"the decoder cannot be compiled, since no process can be started for it: {error}") from error
    if process.returncode < 0:
        ended_by = signal.Signals(-process.returncode).name
        hint = ", perhaps because memory ran out" if ended_by == "SIGKILL" else ""
        raise ServerError(f"the decoder cannot be compiled: the process for it was ended by {ended_by}{hint}")
    if process.returncode:
        reason = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ServerError(f"the decoder cannot be compiled: {reason}")


def compile_task() -> None:
    """Compile what standard input names: the other process's program. Its last line of output says what went wrong."""
    try:
        folder, module, name, signature = pickle.load(sys.stdin.buffer)
        dispatcher = getattr(import_module(module), name)
        dispatcher._cache = cache_in(Path(folder), dispatcher.py_func)
        dispatcher.compile(signature)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
