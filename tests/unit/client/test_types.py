"""The annotations that users meet: `mypy --strict` passes on their programs and finds their mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = [Path(__file__).with_name("typed_program.py"), *sorted((ROOT / "examples").glob("*.py"))]


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> str:
    """What mypy says of all programs in one run, without this project's own settings."""
    folder = tmp_path_factory.mktemp("mypy")
    (folder / "wrong.py").write_text(
        "from florence2_client import Client\n"
        "with Client('grpc://127.0.0.1:8001') as client:\n"
        "    client.detect('street.jpg', beams=1)\n"
        "    print(client.caption('street.jpg').answer.bboxes)\n"
        "    print(client.find('street.jpg', ['a dog']).answer)\n"
    )
    settings = folder / "mypy.ini"
    settings.write_text(
        f"[mypy]\nstrict = True\nmypy_path = {ROOT}:{ROOT / 'client'}\nfollow_imports = silent\n"
        # tritonclient brings no types; the others need not be installed.
        "[mypy-tritonclient.*,fiftyone.*,kserve.*]\nignore_missing_imports = True\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", settings, *PROGRAMS, folder / "wrong.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_a_users_program_is_clean(program, checked):
    """Sync, async, many images, options and errors, all with types that mypy knows."""
    assert "wrong.py" in checked
    wrong = [line for line in checked.splitlines() if program.name in line]
    assert not [line for line in wrong if "error:" in line], checked


def test_a_users_mistake_is_found(checked):
    """An option that does not exist, and an answer taken for another kind."""
    assert 'Unexpected keyword argument "beams"' in checked
    assert '"TextAnswer" has no attribute "bboxes"' in checked
    assert '"Results[BoxesAndPolygons]" has no attribute "answer"' in checked


def test_the_packages_are_marked_as_typed():
    """PEP 561: without py.typed a type checker takes everything for Any."""
    for package in ("florence2", "client/florence2_client", "export/florence2_export"):
        assert (ROOT / package / "py.typed").is_file()
