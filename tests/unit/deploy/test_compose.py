"""docker-compose.yml: valid, closed by default, and its commands are what the programs take. No engine is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from florence2_client import cli
from florence2_client.cli.gateway import KEYS_VARIABLE

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"
MPS = ROOT / "deploy" / "mps.yml"  # for use together with it
PROFILES = {"cpu", "gpu", "public"}
OURS = ("export", "triton-cpu", "triton-gpu", "ui")


def interpolated(text: str, settings: dict[str, str]) -> str:
    """Substitute like compose: `${NAME:-default}`, `${NAME:?why}`, and `$$` for a dollar."""

    def value(match: re.Match[str]) -> str:
        given = settings.get(match["name"], "")
        assert given or match["kind"] == "-", f"{match['name']} must be set"
        return given or match["default"]

    return re.sub(r"\$\{(?P<name>\w+):(?P<kind>[-?])(?P<default>[^}]*)\}", value, text).replace("$$", "$")


def services(**settings: str) -> dict[str, dict[str, Any]]:
    secrets = {"API_KEY": "secret", "GRAFANA_PASSWORD": "secret"}
    composed: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE.read_text(), secrets | settings))
    return composed["services"]


def test_the_files_keep_to_the_compose_specification():
    """Check against Compose's own JSON schema, which the package check-jsonschema ships."""
    check = [
        Path(sys.executable).with_name("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        COMPOSE,
        MPS,
    ]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_settings_are_in_the_example_and_have_a_use():
    """deploy/env.example lists every setting."""
    example = set(re.findall(r"^(\w+)=", (ROOT / "deploy" / "env.example").read_text(), re.MULTILINE))
    assert example == set(re.findall(r"\$\{(\w+)", COMPOSE.read_text())) | {"COMPOSE_PROFILES"}


@pytest.mark.parametrize("name", services())
def test_services_are_hardened_and_closed(name: str):
    """Services have a read-only root, no privileges, bounded logs, pinned images, and ports on loopback only."""
    service = services()[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]
    assert set(service["profiles"]) <= PROFILES
    if "build" not in service:
        assert re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", service["image"]), "a full version"
    if name == "proxy":
        assert (service["profiles"], service["cap_add"]) == (["public"], ["NET_BIND_SERVICE"])
    else:
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "cap_add" not in service


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_triton_serves_what_export_wrote(target: str, tmp_path: Path):
    """All services use the same folder with any settings; only export may write to it, once."""
    settings = {"CHECKPOINT": "/checkpoints/mine", "PRECISION": "float32", "TARGET": target}
    composed = services(**settings)
    export, triton = composed["export"], composed[f"triton-{target}"]
    asked = cli.parser().parse_args(["export", *exported(export, tmp_path)])
    assert (asked.checkpoint, asked.target, asked.precision) == ("/checkpoints/mine", target, "float32")
    options = cli.parser().parse_args(triton["command"][1:])
    assert options.repository == Path("/models/checkpoints/mine") / f"{target}-float32"
    assert asked.repository == tmp_path / options.repository.relative_to("/models")
    assert "models:/models:ro" in triton["volumes"] and "models:/models" in export["volumes"]
    assert (options.tritonserver is not None) == (target == "gpu")
    asked.repository.mkdir()
    assert exported(export, tmp_path)[-2:] == ["there", "already"]


def test_a_server_has_one_gpu_and_can_share_it_through_mps():
    """The server gets the daemon's pipes and its memory. The merged file changes nothing else."""
    (gpu,) = services()["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (gpu["driver"], gpu["count"]) == ("nvidia", 1)
    (service,) = yaml.safe_load(MPS.read_text())["services"].items()
    pipes = "/tmp/nvidia-mps"
    assert service == ("triton-gpu", {
        "environment": {"CUDA_MPS_PIPE_DIRECTORY": pipes}, "ipc": "host", "volumes": [f"{pipes}:{pipes}"],
    })  # fmt: skip


def exported(service: dict[str, Any], models: Path) -> list[str]:
    """Return what the service's shell passes to `florence2 export`, or prints."""
    program = models / "florence2"
    program.write_text('#!/bin/sh\nshift; echo "$@"\n')
    program.chmod(0o755)
    (script,) = service["command"]
    command = [*service["entrypoint"], script.replace("/models", str(models))]
    environment = {name: value or "" for name, value in service["environment"].items()}
    environment["PATH"] = f"{models}:/usr/bin:/bin"
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_the_servers_can_start_and_the_page_finds_them():
    """/tmp allows executables, and both kinds of server share one name."""
    for name in ("triton-cpu", "triton-gpu"):
        service = services()[name]
        assert any(mount.startswith("/tmp:exec,") for mount in service["tmpfs"])
        assert service["networks"]["default"]["aliases"] == ["triton"]
        assert service["depends_on"]["export"]["condition"] == "service_completed_successfully"
    options = cli.parser().parse_args(services()["ui"]["command"][1:])
    assert (options.url, options.host) == ("grpc://triton:8001", "0.0.0.0")


def test_the_gateway_gets_its_keys_and_those_of_label_studio():
    """By variables, which other users of the machine cannot see."""
    given = {"LABEL_STUDIO_URL": "http://studio:8080", "LABEL_STUDIO_API_KEY": "a-token"}
    assert services(**given)["gateway"]["environment"] == {KEYS_VARIABLE: "secret", **given}
    assert not any(services()["gateway"]["environment"][name] for name in given)
