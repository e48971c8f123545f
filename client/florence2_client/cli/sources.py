"""Which pictures a batch run is about: directories, globs, list files, single files, and their names in outputs."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from PIL import Image

from florence2.errors import InvalidRequest

Image.init()
SUFFIXES = frozenset(Image.registered_extensions()) - {".eps", ".ps", ".pdf", ".h5", ".hdf", ".grib", ".mpg", ".mpeg"}
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})


def picture_paths(sources: Iterable[str]) -> list[str]:
    """Each picture once, in the order of the sources and by name within a directory.

    A source is a directory (with all below it), a glob, a picture, a text file with a path a line, or - for such lines
    on standard input. Raises InvalidRequest if one is none of these, or if nothing is found.
    """
    paths = list(dict.fromkeys(path for source in sources for path in _paths(source)))
    if not paths:
        raise InvalidRequest("there is no picture to ask about")
    return paths


def _paths(source: str) -> Iterator[str]:
    if source == "-":
        yield from _listed(sys.stdin)
    elif os.path.isdir(source):
        for folder, folders, files in os.walk(source):
            folders.sort()
            yield from (os.path.join(folder, file) for file in sorted(files) if _is_picture(file))
    elif os.path.splitext(source)[1].lower() in LIST_SUFFIXES and os.path.isfile(source):
        try:
            with open(source, encoding="utf-8") as lines:
                yield from _listed(lines)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the list {source} cannot be read: {error}") from error
    elif os.path.isfile(source):
        yield source
    elif glob.has_magic(source):
        yield from (path for path in sorted(glob.glob(source, recursive=True)) if _is_picture(path))
    else:
        raise InvalidRequest(f"{source} is no directory, picture, list (.txt) or pattern that exists")


def _listed(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


def _is_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES and not os.path.basename(path).startswith(".")


def output_path(folder: Path, picture: str, suffix: str) -> Path:
    """Where in `folder` something about a picture goes: below the picture's own directories, for its name alone would
    not tell pictures of two directories apart.
    """
    path = PurePath(os.path.normpath(picture))
    inside = path.parts[bool(path.anchor) :]
    return folder.joinpath(*("_up" if part == ".." else part for part in inside)).with_suffix(suffix)
