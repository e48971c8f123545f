"""Run `florence2` as a process of its own."""

from __future__ import annotations

import subprocess
import sys

COMMAND = [sys.executable, "-c", "import sys; from florence2_command import main; sys.exit(main())"]


def run_process(*arguments, **options):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, **options)
