"""Links between the pages lead somewhere, and the map of the repository names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in ("demo", "docs", "examples", "tools") for page in (ROOT / folder).rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page):
    """Addresses on the web are not checked."""
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_map_names_what_is_there():
    """The tree in docs/README.md: every path exists, and no folder of the repository is missing."""
    tree = re.search(r"```text\n(.*?)```", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"), re.S)
    assert tree
    named: list[str] = []
    parents = {0: ""}
    for line in tree[1].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent in parents:  # otherwise the line continues a description
            names = re.split(r"  +", line.strip())[0].split()
            named += [parents[indent] + name for name in names]
            parents[indent + 2] = parents[indent] + names[0]
    assert [name for name in named if not (ROOT / name).exists()] == []
    folders = {path.parent.name for path in ROOT.glob("*/*.*") if path.parent.suffix != ".egg-info"} - {"build"}
    assert {name for name in folders if not name.startswith(".")} - {name.split("/")[0] for name in named} == set()


def test_the_path_of_a_request_names_files_that_exist():
    """The table in docs/architecture.md; a second file lies in the folder of the first."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| (.*?) \|", text, re.M)
    assert len(rows) > 10
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        assert (ROOT / first).is_file(), first
        for other in others:
            assert ((ROOT / first).parent / other).is_file(), other
