"""The images of a batch run, from directories, globs, list files and single files, and where its outputs go.

The folder of the drawings holds the file DRAWINGS_MARK, so that no run takes drawings for images.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib.util
import io
import itertools
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePath

from PIL import Image

from florence2.errors import InvalidRequest
from florence2_client.documents import page_count

Image.init()
SUFFIXES = frozenset(Image.registered_extensions()) - {".eps", ".ps", ".pdf", ".h5", ".hdf", ".grib", ".mpg", ".mpeg"}
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
# Formats that need an extra: suffixes, its package, its name.
EXTRAS = ((HEIC_SUFFIXES, "pi_heif", "heif"), (frozenset({".pdf"}), "pypdfium2", "pdf"))
SUFFIXES |= {suffix for suffixes, package, _ in EXTRAS for suffix in suffixes if importlib.util.find_spec(package)}
REMEDIES = {
    suffix: f"needs: pip install 'florence2-triton[{name}]'" for suffixes, _, name in EXTRAS for suffix in suffixes
}
DRAWINGS_MARK = ".florence2-drawings"
MARK_TEXT = "florence2 writes drawings or masks to this folder, and batches read no images from it.\n"
MOST_NAMES = 3  # of skipped files of one kind
LONGEST_NAME = 160  # bytes; file systems take 255, which the name of an image may be a part of


class ImagePaths:
    """Each image once, in the order of the sources and by name within a directory.

    A source is a directory (with everything below it), a glob, an image, a text file with one path per line, or - for
    such lines on standard input. Each page of a document is an image, such as `scan.pdf#1`. `skipped` holds the files
    that are no images, and folders that were left out.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        """Raise InvalidRequest if a source is none of these, or if there is no image."""
        self.skipped: list[str] = []
        self.lists: list[str] = []
        self._has_mark = cache(lambda folder: os.path.exists(os.path.join(folder, DRAWINGS_MARK)))
        self.files = list(dict.fromkeys(path for source in sources for path in self._paths(source)))
        self.paths = [name for file in self.files for name in page_names(file)]
        if not self.paths:
            raise InvalidRequest(f"there is no image in the given sources{self.skipped_line('; skipped ')}")

    def skipped_line(self, before: str = "") -> str:
        """Return what was skipped by kind, with a few names, or nothing if nothing was."""
        kinds: dict[str, list[str]] = {}
        for path in dict.fromkeys(self.skipped):
            suffix = os.path.splitext(path)[1].lower()
            kinds.setdefault(path if path.endswith(os.sep) else suffix, []).append(os.path.basename(path))
        parts = []
        for kind, names in kinds.items():
            if kind.endswith(os.sep):
                parts.append(f"{kind} ({self.why_skipped(kind)})")
                continue
            some = ", ".join(names[:MOST_NAMES]) + ", …" * (len(names) > MOST_NAMES)
            remedy = f"; {REMEDIES[kind]}" if kind in REMEDIES else ""
            what = f"{kind} file" if kind else "file without a suffix"
            parts.append(f"{len(names)} {what}{'s' * (len(names) > 1)} ({some}{remedy})")
        return before + ", ".join(parts) if parts else ""

    def why_skipped(self, folder: str) -> str:
        """Return why a folder was left out."""
        if os.path.islink(folder.rstrip(os.sep)):
            return "a link to a folder"
        return "drawings" if self._has_mark(Path(folder)) else "cannot be read"

    def _paths(self, source: str) -> Iterator[str]:
        if source == "-":
            if sys.stdin is None or sys.stdin.isatty():
                raise InvalidRequest("DIR_OR_GLOB_OR_LIST is - but no list is piped in")
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from _listed(sys.stdin, "on standard input")
        elif os.path.isdir(source):
            yield from self._below(source)
        elif os.path.splitext(source)[1].lower() in LIST_SUFFIXES and os.path.isfile(source):
            self.lists.append(source)
            try:
                with open(source, encoding="utf-8-sig", errors="surrogateescape") as lines:
                    yield from _listed(lines, source)
            except OSError as error:
                raise InvalidRequest(f"the list {source} cannot be read: {error.strerror}") from error
        elif os.path.isfile(source):
            if not self._is_drawing(os.path.dirname(source)):
                yield source
        elif glob.has_magic(source):
            matches = [path for path in sorted(glob.glob(source, recursive=True)) if os.path.isfile(path)]
            yield from self._images(path for path in matches if not self._is_drawing(os.path.dirname(path)))
        else:
            raise InvalidRequest(f"{source} is not an existing directory, image, list (.txt) or pattern")

    def _below(self, source: str) -> Iterator[str]:
        def skip(error: OSError) -> None:
            self.skipped.append(os.path.join(str(error.filename), ""))

        for folder, folders, files in os.walk(source, onerror=skip):
            folders.sort()
            if self._is_drawing(folder):
                folders.clear()
            else:
                linked = (os.path.join(folder, name) for name in folders)
                self.skipped += [os.path.join(path, "") for path in linked if os.path.islink(path)]
                yield from self._images(os.path.join(folder, file) for file in sorted(files))

    def _images(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            if os.path.basename(path).startswith("."):
                continue
            if os.path.splitext(path)[1].lower() in SUFFIXES:
                yield path
            else:
                self.skipped.append(path)

    def _is_drawing(self, folder: str) -> bool:
        """Return whether a folder, or one that it is in, holds drawings; note that it is skipped."""
        place = Path(folder or ".").absolute()
        marked = next((parent for parent in (place, *place.parents) if self._has_mark(parent)), None)
        if marked:
            self.skipped.append(os.path.join(os.path.relpath(marked), ""))
        return marked is not None


def page_names(file: str) -> list[str]:
    """Return `scan.pdf#1`, `scan.pdf#2`, ... for a PDF or a TIFF of several pages, and only the file for anything else.

    That includes what cannot be read, of which the request tells more.
    """
    if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be read here, and be empty later
        return [file]
    count = page_count(file)
    if count == 1 and not file.lower().endswith(".pdf"):
        return [file]
    return [f"{file}#{number}" for number in range(1, count + 1)]


def file_of(name: str) -> tuple[str, int | None]:
    """Return the file of an image, and the number of its page if it is one of a document."""
    document = re.fullmatch(r"(.+\.(?:pdf|tiff?))#([1-9][0-9]*)", name, re.IGNORECASE | re.DOTALL)
    return (document[1], int(document[2])) if document and not os.path.exists(name) else (name, None)


def stamp_of(name: str) -> list[int]:
    """Return the size and the time of an image's file, by which a change shows. Raise OSError if it cannot be read."""
    path = file_of(name)[0]
    if not stat.S_ISREG(mode := os.stat(path).st_mode):  # to open a pipe could take forever
        what = "it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file"
        raise OSError(errno.EINVAL, what, path)
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        return [found.st_size, found.st_mtime_ns]


def why_absent(path: str, error: OSError) -> str:
    """Return the sentence for an image without a stamp."""
    missing = isinstance(error, FileNotFoundError)
    return f"there is no file {path}" if missing else f"{path} cannot be read: {error.strerror}"


def _listed(lines: Iterable[str], place: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise InvalidRequest(f"line {number} of the list {place} is not a path; is it a text in UTF-8?")
        if path := line.strip():
            yield path


def output_path(folder: Path, image: str, suffix: str) -> Path:
    """Return the path in `folder` for an output of an image.

    It includes the image's own directories, because images in different directories may have the same name.
    """
    path = PurePath(os.path.normpath(image))
    inside = path.parts[bool(path.anchor) :]
    target = folder.joinpath(*("_up" if part == ".." else part for part in inside))
    page = f"-{target.suffix.rpartition('#')[2]}" if "#" in target.suffix else ""
    return target.with_name(f"{target.stem}{page}{suffix}")


def require_distinct(paths: Iterable[str], folder: Path, what: str, suffix: str | None = None) -> None:
    """Raise InvalidRequest if two images would share an output in `folder`, also if it ignores the case of names."""
    seen: dict[str, str] = {}
    try:
        ignores_case = os.path.samefile(folder, str(folder).swapcase())
    except OSError:
        ignores_case = False
    for path in paths:
        target = output_path(folder, path, os.path.splitext(path)[1] if suffix is None else suffix)
        name = str(target).casefold() if ignores_case else str(target)
        if seen.setdefault(name, path) != path:
            raise InvalidRequest(f"{seen[name]} and {path} would share the {what} {target}")


def file_name(text: str) -> str:
    """Return a task, label or prompt as part of a file's name."""
    name = re.sub(r"[^\w-]+", "_", text).strip("_")[:80]
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


def free_name(text: str, taken: set[str]) -> str:
    """Return the text as a file's name that is not taken, also if the file system ignores case, and take it."""
    name = base = file_name(text) or "_"
    for number in itertools.count(2):
        if name.casefold() not in taken:
            break
        name = f"{base}-{number}"
    taken.add(name.casefold())
    return name


def require_own_folder(folder: Path, paths: Iterable[str], flag: str = "--draw") -> None:
    """Mark a folder as one of drawings or masks. Raise InvalidRequest if it holds images of this run."""
    real = os.path.join(os.path.realpath(folder), "")
    parents = cache(lambda parent: os.path.join(os.path.realpath(parent), "").startswith(real))
    if not (folder / DRAWINGS_MARK).exists():
        for path in paths:
            if parents(os.path.dirname(path) or "."):
                raise InvalidRequest(f"{folder} contains {path}, an image of this run; give {flag} a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DRAWINGS_MARK).write_text(MARK_TEXT)


def require_writable(path: Path, inputs: Iterable[str]) -> None:
    """Make the folder of a file that will be written. Raise an error if it cannot be, or if it is one of the inputs."""
    if path.suffix.lower() in SUFFIXES:
        raise InvalidRequest(f"{path} has the suffix of an image, but would not be one; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise InvalidRequest(f"{path} cannot be written: it is not a regular file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if path.exists():
        own = os.stat(path)
        for name in inputs:
            with contextlib.suppress(OSError):  # without a file to compare, there is none to lose
                if os.path.samestat(os.stat(name), own):
                    raise InvalidRequest(f"{path} is also an input of this run; choose another name for the output")


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of its suffix. Raise OSError, with the path, if the file cannot be written."""
    encoded = io.BytesIO()
    try:
        image.save(encoded, Image.registered_extensions()[path.suffix.lower()], quality=90)
    except Exception as error:  # each format of Pillow has its own limits, and its own errors
        raise InvalidRequest(f"{path} cannot be written: {error}") from error
    with naming(path):
        path.write_bytes(encoded.getvalue())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of a file its name, which those of a full disk lack."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
