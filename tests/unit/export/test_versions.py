"""Test a new version next to the served one: Triton's model control switches a running server without an error."""

import base64
import json
import shutil
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch
import tritonclient.grpc as triton
from safetensors.torch import load_file, save_file

from florence2.errors import CheckpointError, ServerError
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client.cli.info import ask_server
from florence2_client.transports import parse_url
from florence2_export import installation, repository
from florence2_export.sample_images import draw_images

NAME = "florence2"


@pytest.fixture
def served(exported, tmp_path):
    """Return a copy of the exported repository to change."""
    return shutil.copytree(exported[0], tmp_path / "repository")


def stage_next(stage, target, config, provenance=None) -> int:
    """Stage the exported models as their next version, with other weights in the decoder and a mark in postprocess."""
    version = installation.next_version(target, NAME)
    dims = repository.true_dims(config.image, config.text.d_model)
    repository.copy_template(stage, NAME, version, dims, provenance or {"checkpoint": "the next"})
    for role in repository.ROLES[:-1]:
        before = repository.version_directory(target, NAME, role, version - 1)
        after = repository.version_directory(stage, NAME, role, version)
        shutil.copytree(before, after, dirs_exist_ok=True)
    decoder = repository.version_directory(stage, NAME, "decoder", version) / "model.safetensors"
    weights = load_file(decoder)
    torch.manual_seed(0)
    weights["decoder.layers.0.fc1.weight"] += 0.01 * torch.randn_like(weights["decoder.layers.0.fc1.weight"])
    save_file(weights, decoder)
    code = repository.version_directory(stage, NAME, "postprocess", version) / "model.py"
    code.write_text(code.read_text().replace("{key: answer.to_json()}", "{key: answer.to_json(), 'version': 2}"))
    return version


def add_next(target, config) -> int:
    with installation.staging(target) as stage:
        version = stage_next(stage, target, config)
        installation.add(stage, target, NAME, version)
    return version


def pinned(target) -> set[int]:
    config = repository.parse_config((target / f"{NAME}_ensemble" / "config.pbtxt").read_text())
    return {step.model_version for step in config.ensemble_scheduling.step}


def versions(target, role="decoder") -> set[str]:
    return {path.name for path in (target / f"{NAME}_{role}").iterdir() if path.is_dir()}


def test_an_added_version_keeps_the_served_one_and_no_older(served, checkpoint):
    """Running requests still use the previous version, and new ones use the added version."""
    assert pinned(served) == {1}
    assert add_next(served, checkpoint.config) == 2
    assert pinned(served) == {2} and versions(served) == {"1", "2"}
    assert add_next(served, checkpoint.config) == 3
    assert pinned(served) == {3} and versions(served) == {"2", "3"} and versions(served, "ensemble") == {"1"}
    assert [path.name for path in served.parent.iterdir()] == ["repository"]


def test_the_first_version_of_a_name_is_1(exported, checkpoint, tmp_path):
    """--add-version works in an empty repository too."""
    target = tmp_path / "empty"
    assert installation.next_version(target, NAME) == 1
    with installation.staging(target) as stage:
        shutil.copytree(exported[0], stage, dirs_exist_ok=True)
        installation.add(stage, target, NAME, 1)
    assert pinned(target) == {1}


def test_another_geometry_cannot_be_a_version_of_the_same_models(served, checkpoint):
    """All versions of a Triton model share one config and its dims. The refusal changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in served.rglob("*")}
    with (
        pytest.raises(CheckpointError, match="has other dims of IMAGE_FEATURES than this export"),
        installation.staging(served) as stage,
    ):
        version = stage_next(stage, served, checkpoint.config)
        dims = {"PIXELS": [192, 192, 3], "IMAGE_FEATURES": [37, 64]}
        shutil.rmtree(stage)
        repository.copy_template(stage, NAME, version, dims, {})
        installation.add(stage, served, NAME, version)
    assert {path: path.stat().st_mtime_ns for path in served.rglob("*")} == before


def test_adding_that_fails_half_way_is_undone(served, checkpoint, monkeypatch):
    """If the disk fills up, the served version and its ensemble stay."""
    before = {path: path.read_bytes() for path in served.rglob("*") if path.is_file()}
    over = installation._Moves.over

    def full_disk(self, source, destination):
        if "ensemble" in str(destination):
            raise OSError(28, "No space left on device")
        over(self, source, destination)

    monkeypatch.setattr(installation._Moves, "over", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        add_next(served, checkpoint.config)
    assert {path: path.read_bytes() for path in served.rglob("*") if path.is_file()} == before


class Clients:
    """Threads that send requests over HTTP without a pause during a `with` block, and keep each answer and failure."""

    def __init__(self, url: str, image: bytes, count: int = 3) -> None:
        body = {"IMAGE": base64.b64encode(image).decode(), "TASK": "<OD>", "NUM_BEAMS": 1, "MAX_NEW_TOKENS": 30}
        self.request = urllib.request.Request(
            f"{url}/v2/models/{NAME}_ensemble/generate", json.dumps(body).encode(), method="POST"
        )
        self.answers: list[tuple[bool, str]] = []
        self.failures: list[Exception] = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.keep_asking) for _ in range(count)]

    def ask(self) -> tuple[bool, str]:
        """Return whether the new postprocess answered, and the decoder's text."""
        with urllib.request.urlopen(self.request, timeout=60) as response:
            answer = json.load(response)
        return "version" in json.loads(answer["RESULT"]), answer["GENERATED_TEXT"]

    def keep_asking(self):
        while not self.stopping.is_set():
            try:
                self.answers.append(self.ask())
            except Exception as error:
                self.failures.append(error)

    def __enter__(self):
        [thread.start() for thread in self.threads]
        return self

    def __exit__(self, *_):
        self.stopping.set()
        [thread.join() for thread in self.threads]


@pytest.mark.live
def test_a_running_server_changes_over_without_failing_or_mixing_an_answer(served, checkpoint, tmp_path):
    """Under continuous requests, each answer comes entirely from the old or the new version, and none is missing."""
    draw_images(checkpoint.config.image, 1)[0].save(tmp_path / "image.png")
    with EmbeddedServer(ServingOptions.on_free_ports(served, model_control=True)) as server:
        clients = Clients(server.http_url, (tmp_path / "image.png").read_bytes())
        control = triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
        old = clients.ask()
        with clients:
            add_next(served, checkpoint.config)
            control.load_model(f"{NAME}_ensemble", client_timeout=120)
            new = clients.ask()
            shown = [ask_server(parse_url(url))[0].description for url in (server.grpc_url, server.http_url)]
            assert [facts["checkpoint"] for facts in shown] == ["the next", "the next"]
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"{server.http_url}/v2/repository/models/{NAME}_ensemble/load", b"{}")
            assert {(f"{NAME}_decoder", "1"), (f"{NAME}_decoder", "2")} <= held(control)
            for role in repository.ROLES[:-1]:  # frees the memory of the previous version
                shutil.rmtree(served / f"{NAME}_{role}" / "1")
                control.load_model(f"{NAME}_{role}", client_timeout=120)
            wait_until(lambda: (f"{NAME}_decoder", "1") not in held(control))
        control.close()
        assert not clients.failures
        assert old != new and not old[0] and new[0]
        assert set(clients.answers) == {old, new}
        assert clients.answers[-1] == new


def held(control) -> set[tuple[str, str]]:
    """Return the models and versions that take memory."""
    models = control.get_model_repository_index().models
    return {(model.name, model.version) for model in models if model.state != "UNAVAILABLE"}


def wait_until(done, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.live
def test_model_control_is_only_for_this_machine(served):
    """Triton's load request can contain files, which Triton then runs."""
    with pytest.raises(ServerError, match=r"listen on 127\.0\.0\.1"):
        EmbeddedServer(ServingOptions.on_free_ports(served, host="0.0.0.0", model_control=True)).__enter__()
