"""Programs that are run with `python -m` explain themselves before they start."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = [
    path.relative_to(ROOT).with_suffix("")
    for room in ("bench", "tools", "demo", "export")
    for path in sorted((ROOT / room).rglob("*.py"))
    if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


@pytest.mark.slow
@pytest.mark.parametrize("program", [".".join(path.parts).removesuffix(".__main__") for path in PROGRAMS])
def test_help_starts_nothing(program):
    """No benchmark, no training, no server; most of the time goes into imports."""
    command = [sys.executable, "-m", program, "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: ")
