"""The workflow, the issue templates and the hooks: valid, and the checks are those that `make` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-workflows", WORKFLOW), *(("github-issue-forms", path) for path in TEMPLATES)],
    ids=lambda value: getattr(value, "name", value),
)
def test_github_accepts_the_file(schema: str, path: Path):
    """Check against GitHub's schemas, which check-jsonschema ships."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    if not checker.exists():
        pytest.skip("check-jsonschema is not installed on this version of Python")
    command = [checker, "--builtin-schema", f"vendor.{schema}", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_runs_what_everyone_runs():
    """The workflow runs `.ci/run`, checks the build, and tests the client on Pythons that only it supports."""
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {".ci/run", "python -m build", "twine check --strict dist/*"} <= set(commands)
    assert {"3.10", "3.13", "3.14"} <= set(jobs["client"]["strategy"]["matrix"]["python"])


def test_commit_hooks_are_the_commands_of_make_check():
    """The hooks use the tools of .venv, so that both find the same."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    check = (ROOT / "Makefile").read_text().partition("check: install")[2].partition("\n\n")[0]
    for hook in repository["hooks"]:
        words = hook["entry"].removeprefix(".venv/bin/").split()
        assert words[0] in check and (len(words) == 1 or words[1] in check)
