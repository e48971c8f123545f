"""README stays true: its tables are those of the code, and its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from florence2.tasks import TASKS, Grammar, Task, TaskInput
from tests.unit.test_model_repository import CONTRACT_INPUTS, CONTRACT_OUTPUTS
from tools.toy_model import scenes

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TAKES = {TaskInput.NONE: "nothing", TaskInput.TEXT: "a phrase or caption", TaskInput.REGION: "a region"}
FORMS = {
    Grammar.TEXT: "text",
    Grammar.OCR: "`quad_boxes`, `labels`",
    Grammar.LABELLED_BOXES: "`bboxes`, `labels`, `scores`",
    Grammar.BARE_BOXES: "`bboxes`, empty `labels`, `scores`",
    Grammar.GROUNDING: "`bboxes`, `labels`, `scores`",
    Grammar.POLYGONS: "`polygons`, empty `labels`",
    Grammar.BOXES_OR_POLYGONS: "`bboxes`, `bboxes_labels`, `scores`, `polygons`, `polygons_labels`",
}


def row(task: Task) -> str:
    return f"| `{task.token}` | {TAKES[task.input]} | {task.summary}: {FORMS[task.grammar]} |"


def test_the_task_table_is_the_codes():
    """On failure, the table to put into README is printed."""
    expected = "| task | takes | answers with |\n|---|---|---|\n" + "\n".join(map(row, TASKS.values()))
    assert expected in README, f"README's task table should be:\n{expected}"


def test_the_contract_tables_name_every_tensor():
    """Inputs and outputs with their types, in the order of the contract."""
    listed = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z0-9]+) \[(\d)\](, optional)? \|", README, re.MULTILINE)
    contract = {**CONTRACT_INPUTS, **CONTRACT_OUTPUTS}
    assert listed == [
        (name, kind.removeprefix("TYPE_"), str(dims[0]), ", optional" * optional)
        for name, (kind, dims, optional) in contract.items()
    ]


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A folder with the picture that README's examples ask about."""
    scenes.make_scene(900_003).draw(640).save(tmp_path / "street.jpg")
    return tmp_path


def at(server, code: str) -> str:
    return code.replace("127.0.0.1:8001", server.grpc_url.removeprefix("grpc://")).replace(
        "127.0.0.1:8000", server.http_url.removeprefix("http://")
    )


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=["client", "tritonclient"])
def test_python_examples_run(server, street, code):
    """As they stand, but for the ports."""
    done = subprocess.run([sys.executable, "-c", at(server, code)], cwd=street, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bboxes" in done.stdout or (street / "found.png").exists()
