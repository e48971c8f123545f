"""What answers depend on besides their image: a run does not add to answers that were made otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from florence2.errors import InvalidRequest

# What each export has now. Exports of early versions may lack one; that does not make them another model.
ALWAYS_KNOWN = frozenset({"weights_sha256", "vision_precision", "language_precision", "image_size"})
LONGEST_SHOWN = 12  # characters of a hash


def option_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the flags with other values, as `--num-beams 3 instead of 1`. `was` is empty if it is not known."""
    if not was:
        return []
    before, after = ({"model": side["model"], **side["options"]} for side in (was, now))
    flags = _differing(before, after)
    return [f"--{name.replace('_', '-')} {_shown(old)} instead of {_shown(new)}" for name, old, new in flags]


def model_differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str | None, str | None]]:
    """Return where two models differ, as names and values. Each is what `identity_of` returns, empty if not known."""
    if not (was and now):
        return []
    return [each for each in _differing(was, now) if each[0] not in ALWAYS_KNOWN or None not in each[1:]]


def require_same_model(kept: Iterable[Mapping[str, str]], now: Mapping[str, str], out: Path) -> None:
    """Raise InvalidRequest if one of the kept answers is of another model than the one that is served now."""
    for was in kept:
        if differing := model_differences(was, now):
            facts = [f"{name} {_shown(old, LONGEST_SHOWN)} instead of {_shown(new, LONGEST_SHOWN)}"
                     for name, old, new in differing]  # fmt: skip
            raise InvalidRequest(
                f"{out} has answers of another model, with {', '.join(facts)}; choose another --out, or delete it"
            )


def require_form(key: tuple[Any, Any, Any], request: Any) -> None:
    """Raise ValueError if a line of a journal has the right fields, but not with the values that a run writes."""
    named = isinstance(key[0], str) and isinstance(key[1], str) and isinstance(key[2], str | None)
    parts = request or {"model": "", "options": {}, "file": None}
    whole = {"model", "options", "file"} <= parts.keys() and isinstance(parts.get("served", {}), dict)
    if not (named and whole and isinstance(parts["options"], dict)):
        raise ValueError("the request of an answer has another form")


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            yield name, was.get(name), now.get(name)


def _shown(value: Any, most: int | None = None) -> str:
    return "not given" if value is None else str(value)[:most]
