"""Find a checkpoint or an adapter: in a directory, or on the Hugging Face hub through its local cache.

`checkpoint` and `adapter` call `fetch`. It downloads only configs, tokenizers and weights, no code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from florence2.errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """The files of a checkpoint or an adapter. `revision` is the commit of a hub repository, None for a directory."""

    directory: Path
    name: str
    revision: str | None


def fetch(
    source: str,
    revision: str | None = None,
    weights: str | None = None,
    pickles: str | None = None,
    subfolder: str | None = None,
) -> Source:
    """Return the source for a directory or a hub id, or for a folder in it. Raise CheckpointError if there is none.

    `weights` and `pickles` are file name patterns; pickles are downloaded only if there are no other weights.
    """
    inner = PurePosixPath(subfolder or ".")
    if inner.is_absolute() or ".." in inner.parts:
        raise CheckpointError(f"--subfolder {subfolder} leads out of {source}; name a folder in it")
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{source} is a directory, which has no revisions; use --revision only with a hub id")
        found = Source(path / inner, (path / inner).resolve().name, None)
    elif path.exists():
        raise CheckpointError(f"{source} is a file; give the directory that holds it")
    elif not HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"there is no directory {source}; give a directory or a hub id such as microsoft/Florence-2-base"
        )
    else:
        wanted = [["*.json", "*merges.txt", *([str(inner / weights)] if weights else [])]]
        if pickles is not None:
            wanted.append([*wanted[0][:2], str(inner / pickles)])
        for patterns in wanted:
            snapshot = _download(source, revision, patterns)
            if weights is None or any((snapshot / inner).glob(weights)):
                break
        # The cache names a snapshot's folder after its commit.
        found = Source(snapshot / inner, "/".join((source, *inner.parts)), snapshot.name)
    if not found.directory.is_dir():
        raise CheckpointError(f"{source} has no folder {subfolder}; check --subfolder")
    for file in (*found.directory.glob("*.json"), *found.directory.glob("*.txt")):
        refuse_pointer(file)
    return found


def refuse_pointer(file: Path) -> None:
    """Raise CheckpointError if a file is empty, or what Git leaves in its place until Git LFS downloads it."""
    size = file.stat().st_size
    if size == 0:
        raise CheckpointError(f"{file.name} in {file.parent} is empty; download or save it again")
    if size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{file.name} in {file.parent} is a pointer of Git LFS, not the file itself; run `git lfs pull` there"
        )


def _download(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the cached snapshot, after downloading what is missing with huggingface_hub's own progress bar."""
    from huggingface_hub import errors, snapshot_download  # only here: a directory needs no hub

    wanted = f"revision {revision} of {hub_id}" if revision else hub_id
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except errors.GatedRepoError as error:
        sentence = f"{hub_id} is gated; accept its terms on its hub page and log in with `hf auth login`"
        raise CheckpointError(sentence) from error
    except errors.RepositoryNotFoundError as error:
        sentence = (
            f"there is no directory {hub_id}, and the hub has no such public repository; "
            "check the name, or log in with `hf auth login` if the repository is private"
        )
        raise CheckpointError(sentence) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{hub_id} has no revision {revision}; give one of its branches, tags or commits"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        sentence = (
            f"{wanted} is neither a directory nor in the hub's cache, and the hub cannot be reached; "
            "check the name and the network"
        )
        raise CheckpointError(sentence) from error
    except Exception as error:  # errors of network, disk and hub come from half a dozen libraries
        raise CheckpointError(
            f"{wanted} cannot be downloaded from the hub ({one_line(error)}); check the network and try again"
        ) from error


def one_line(error: Exception) -> str:
    """Return another library's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
