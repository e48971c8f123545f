"""docs/benchmarks.json: what was measured so far, and with which sources, so that a run continues where it ended."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
JSON = ROOT / "docs" / "benchmarks.json"
SOURCES = ("florence2", "model_repository", "export")  # what this server's figures depend on
SUFFIXES = {".py", ".pbtxt", ".cu"}
OURS = ("this server", "1 server", "2 servers")  # names of the competitors that run these sources
Figures = dict[str, Any]
Key = tuple[str, str, int]  # part, competitor, round


@functools.cache
def fingerprint(name: str) -> str:
    """Return a hash of a file, or of a folder's sources, as they are now; it survives a rebase, and needs no git."""
    found, place = hashlib.sha256(), ROOT / name
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if path.suffix in SUFFIXES and path.resolve() == path:  # Python's versions differ in following links
            found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def stamp() -> dict[str, Any]:
    """Return when, and with which sources, something is measured."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *SOURCES], cwd=ROOT, capture_output=True)
    commit = head.stdout.strip() + (" with changes" if changed.returncode == 1 else "")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": commit or "unknown",
        "sources": {folder: fingerprint(folder) for folder in SOURCES},
    }


def changed_since(run: Figures) -> list[str]:
    """Return the folders whose sources have changed since this server was measured; none for other competitors."""
    if not run["competitor"].startswith(OURS):
        return []
    return [folder for folder, then in run["sources"].items() if fingerprint(folder) != then]


class Record:
    """Figures in a file, which is written after every run; one run is one part of one competitor in one round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: Figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}

    def has(self, key: Key) -> bool:
        """Say whether this was measured, by the sources as they are now, and without an error."""
        return any(key_of(run) == key and "error" not in run and not changed_since(run) for run in self.figures["runs"])

    def add(self, run: Figures) -> None:
        """Write one more run, instead of an older one of the same key."""
        runs = [other for other in self.figures["runs"] if key_of(other) != key_of(run)]
        self.update(runs=[*runs, run])

    def update(self, **values: Any) -> None:
        self.figures.update(values)
        written = self.path.with_suffix(".part")
        written.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")
        written.replace(self.path)


def key_of(run: Figures) -> Key:
    return run["part"], run["competitor"], run["round"]
