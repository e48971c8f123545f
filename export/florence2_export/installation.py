"""Move a finished export to its place, by renames on one file system: all of them or none.

`pipeline` builds in `staging`, then calls `replace` or `add`. An export that fails leaves the target unchanged. One
that is killed leaves a hidden folder, which the next export into the same place removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from florence2.errors import CheckpointError
from florence2_export.hub import one_line
from florence2_export.repository import CONFIG, ROLES, parse_config, version_directory

LOCK = "lock"


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a directory on the target's file system and remove it at the end, even after an error."""
    target = target.resolve()
    place = target.parent
    try:
        place = target if target.is_mount() else place
        place.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}-"
        for abandoned in place.glob(f"{prefix}*/{LOCK}"):  # by exports that were killed; one that runs holds its lock
            with contextlib.suppress(OSError), abandoned.open("r+") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(abandoned.parent)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        stage = work / "models"
        stage.mkdir()
        lock = (work / LOCK).open("w")
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield stage
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.close()


class _Moves:
    """Renames that are undone together if the `with` block around them fails."""

    def __init__(self, stage: Path, target: Path) -> None:
        self._target = target
        self._attic = Path(tempfile.mkdtemp(dir=stage.parent))
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> _Moves:
        if not self._target.exists():
            self._target.mkdir()
            self._undo.callback(self._target.rmdir)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._undo.pop_all()
        self._undo.close()
        if isinstance(error, OSError):
            raise CheckpointError(f"{self._target} cannot be written: {error.strerror}") from error

    def move(self, source: Path, destination: Path) -> None:
        source.rename(destination)
        self._undo.callback(destination.rename, source)

    def away(self, path: Path) -> None:
        """Move a file or a folder out of the target."""
        self.move(path, Path(tempfile.mkdtemp(dir=self._attic)) / path.name)

    def over(self, source: Path, destination: Path) -> None:
        """Replace one file with another, atomically."""
        kept = Path(tempfile.mkdtemp(dir=self._attic)) / destination.name
        shutil.copyfile(destination, kept)
        source.replace(destination)
        self._undo.callback(kept.replace, destination)


def replace(stage: Path, target: Path) -> None:
    """Move the staged models into the target, where they replace models of the same names."""
    with _Moves(stage, target) as moves:
        for model in sorted(stage.iterdir()):
            if (target / model.name).exists():
                moves.away(target / model.name)
            moves.move(model, target / model.name)


def next_version(target: Path, name: str) -> int:
    """Return the version after the highest one of these models."""
    return 1 + max((int(path.name) for role in ROLES for path in _versions(target, name, role)), default=0)


def add(stage: Path, target: Path, name: str, version: int) -> None:
    """Add the staged version next to the one that the ensemble uses, and remove older ones. Switch the ensemble last.

    Raise CheckpointError if the new models have other tensors, because all versions of a model share one config.
    """
    ensemble = target / f"{name}_ensemble" / CONFIG
    if not ensemble.exists():
        return replace(stage, target)
    served = {str(step.model_version) for step in _read(ensemble).ensemble_scheduling.step}
    for role in ROLES:
        _require_same_tensors(stage / f"{name}_{role}" / CONFIG, target / f"{name}_{role}" / CONFIG)
    with _Moves(stage, target) as moves:
        for role in ROLES[:-1]:
            for older in _versions(target, name, role):
                if older.name not in served:
                    moves.away(older)
            moves.move(*(version_directory(place, name, role, version) for place in (stage, target)))
        for role in ROLES:
            moves.over(*(place / f"{name}_{role}" / CONFIG for place in (stage, target)))


def _versions(target: Path, name: str, role: str) -> list[Path]:
    model = target / f"{name}_{role}"
    return [path for path in model.iterdir() if path.name.isdecimal()] if model.is_dir() else []


def _read(config: Path) -> ModelConfig:
    try:
        return parse_config(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, text_format.ParseError) as error:
        raise CheckpointError(
            f"{config} cannot be read ({one_line(error)}); export without --add-version to replace it"
        ) from error


def _require_same_tensors(new: Path, present: Path) -> None:
    ours, theirs = _tensors(new), _tensors(present)
    changed = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if changed:
        raise CheckpointError(
            f"{present.parent} has other dims of {changed[0]} than this export, which therefore cannot be a version of "
            "it; choose another --name"
        )


def _tensors(config: Path) -> dict[str, list[int]]:
    read = _read(config)
    return {tensor.name: list(tensor.dims) for tensor in (*read.input, *read.output)}
