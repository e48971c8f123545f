"""docs/cli.md stays true: its table is the list of commands."""

from __future__ import annotations

import re
from pathlib import Path

from florence2_client.cli import COMMANDS

PAGE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_table_lists_every_command():
    """In the order and with the words of `florence2 --help`."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE, re.M)
    assert rows == [(name, help_text) for name, (_, help_text) in COMMANDS.items()]
