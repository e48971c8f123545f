"""README's examples run. Its tables are generated: see tests/unit/test_contract.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.toy_model import scenes

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Return a folder with the image of README's examples."""
    scenes.make_scene(900_003).draw(640).save(tmp_path / "street.jpg")
    return tmp_path


def at(server, code: str) -> str:
    return code.replace("127.0.0.1:8001", server.grpc_url.removeprefix("grpc://")).replace(
        "127.0.0.1:8000", server.http_url.removeprefix("http://")
    )


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=["client", "tritonclient"])
def test_python_examples_run(server, street, code):
    """Run the examples as they stand, except for the ports."""
    done = subprocess.run([sys.executable, "-c", at(server, code)], cwd=street, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bboxes" in done.stdout or (street / "found.png").exists()
