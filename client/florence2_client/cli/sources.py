"""The images of a batch run, from directories, globs, list files and single files, and their names in outputs."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from PIL import Image

from florence2.errors import InvalidRequest

Image.init()
SUFFIXES = frozenset(Image.registered_extensions()) - {".eps", ".ps", ".pdf", ".h5", ".hdf", ".grib", ".mpg", ".mpeg"}
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})


def image_paths(sources: Iterable[str]) -> list[str]:
    """Return each image once, in the order of the sources and by name within a directory.

    A source is a directory (with everything below it), a glob, an image, a text file with one path per line, or - for
    such lines on standard input. Raise InvalidRequest if a source is none of these, or if there is no image.
    """
    paths = list(dict.fromkeys(path for source in sources for path in _paths(source)))
    if not paths:
        raise InvalidRequest("there is no image in the given sources")
    return paths


def _paths(source: str) -> Iterator[str]:
    if source == "-":
        yield from _listed(sys.stdin)
    elif os.path.isdir(source):
        for folder, folders, files in os.walk(source):
            folders.sort()
            yield from (os.path.join(folder, file) for file in sorted(files) if _is_image(file))
    elif os.path.splitext(source)[1].lower() in LIST_SUFFIXES and os.path.isfile(source):
        try:
            with open(source, encoding="utf-8") as lines:
                yield from _listed(lines)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the list {source} cannot be read: {error}") from error
    elif os.path.isfile(source):
        yield source
    elif glob.has_magic(source):
        yield from (path for path in sorted(glob.glob(source, recursive=True)) if _is_image(path))
    else:
        raise InvalidRequest(f"{source} is not an existing directory, image, list (.txt) or pattern")


def _listed(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES and not os.path.basename(path).startswith(".")


def output_path(folder: Path, image: str, suffix: str) -> Path:
    """Return the path in `folder` for an output of an image.

    It includes the image's own directories, because images in different directories may have the same name.
    """
    path = PurePath(os.path.normpath(image))
    inside = path.parts[bool(path.anchor) :]
    return folder.joinpath(*("_up" if part == ".." else part for part in inside)).with_suffix(suffix)


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of its suffix. Raise OSError, with the path, if the file cannot be written."""
    encoded = io.BytesIO()
    try:
        image.save(encoded, Image.registered_extensions()[path.suffix.lower()], quality=90)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be written: {error}") from error
    try:
        path.write_bytes(encoded.getvalue())
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error  # a full disk has no name
