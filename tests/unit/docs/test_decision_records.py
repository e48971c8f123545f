"""Decision records have consecutive numbers, a status and a date, and the index lists each of them as it is."""

from __future__ import annotations

import re
from pathlib import Path

RECORDS = Path(__file__).parents[3] / "docs" / "adr"
HEAD = re.compile(
    r"# (?P<number>\d{4}) (?P<title>.+)\n\n"
    r"Status: (?P<status>accepted|superseded by \d{4}) · Date: (?P<date>\d{4}-\d\d-\d\d)\b.*\n\n"
    r"## Context\n"
)
ROW = re.compile(
    r"^\| \[(?P<number>\d{4})\]\((?P<file>.+?)\) \| (?P<title>.+?) \| (?P<status>.+?) \| (?P<date>\S+) \|$", re.M
)


def test_the_index_lists_every_record_as_its_head_says() -> None:
    """The table of docs/adr/README.md repeats number, title, status and date of all files, in order."""
    listed = [match.groupdict() for match in ROW.finditer((RECORDS / "README.md").read_text(encoding="utf-8"))]
    written = []
    for path in sorted(RECORDS.glob("[0-9]*.md")):
        head = HEAD.match(path.read_text(encoding="utf-8"))
        assert head, f"{path.name} does not begin with a title, status, date and context"
        assert path.name.startswith(head["number"])
        written.append(head.groupdict() | {"file": path.name})
    assert listed == written
    assert [record["number"] for record in listed] == [f"{number:04}" for number in range(1, len(listed) + 1)]


def test_every_record_states_context_decision_and_consequences() -> None:
    """Alternatives may follow."""
    for path in RECORDS.glob("[0-9]*.md"):
        sections = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.M)
        assert sections[:3] == ["Context", "Decision", "Consequences"], path.name
        assert sections[3:] in ([], ["Alternatives"]), path.name
