"""`--tritonserver`: serve with an installation of Triton, such as /opt/tritonserver in NVIDIA's container."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
import tritonclient.grpc as triton

from florence2.errors import ServerError
from florence2.server.embedded import EmbeddedServer, model_processes
from florence2.server.folder import assemble, mirror
from florence2.server.installation import Installation, find_installation, find_wheel
from florence2.server.launch import expected_regions
from florence2.server.options import ServingOptions
from tests.live.server.small_models import onnx_model, python_model

MODEL = """name: "%s" backend: "%s" instance_group [ { count: %d } ]"""


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out the wheel's files as in the container, with libraries where the loader finds them."""
    root, wheel = tmp_path / "opt" / "tritonserver", find_wheel()
    root.mkdir(parents=True)
    assembled = assemble(root, wheel)
    (root / "bin").mkdir()
    (root / "bin" / "tritonserver").symlink_to(wheel.tritonserver)
    shutil.copytree(wheel.caches, root / "caches")
    monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(map(str, assembled.libraries)))
    return root


def test_a_container_s_tritonserver_serves_and_is_watched(container: Path, tmp_path: Path):
    """Use its backends and caches, find its model processes, and notice a dead one."""
    repository = python_model(tmp_path / "repository")
    with EmbeddedServer(ServingOptions.on_free_ports(repository, tritonserver=container)) as server:
        client = triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
        x = triton.InferInput("X", [2], "FP32")
        x.set_data_from_numpy(np.array([1, 2], np.float32))
        assert client.infer("double", [x]).as_numpy("Y").tolist() == [2, 4]
        (tritonserver,) = psutil.Process(server._process.pid).children()
        assert f"--backend-directory={container / 'backends'}" in tritonserver.cmdline()
        (process,) = model_processes(server._folder)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(ServerError, match="a process of double died"):
            server.wait()


def test_what_an_installation_lacks_is_reported(container: Path):
    """`--tritonserver /opt` is an easy mistake."""
    assert find_installation(container).tritonserver == container / "bin" / "tritonserver"
    with pytest.raises(ServerError, match=r"/opt is not a complete installation of Triton: it lacks bin/tritonserver"):
        find_installation(container.parent)
    shutil.rmtree(container / "backends" / "onnxruntime")
    with pytest.raises(ServerError, match="it lacks backends/onnxruntime"):
        find_installation(container)


def test_onnxruntime_opens_a_mirrored_model_itself(tmp_path: Path):
    """Open it as the C++ backend does: model and weights are links, which some releases of onnxruntime may refuse."""
    mirrored = mirror(tmp_path, onnx_model(tmp_path / "exported"))
    session = onnxruntime.InferenceSession(mirrored / "triple" / "1" / "model.onnx")
    assert session.run(["Y"], {"X": np.ones((1, 1), np.float32)})[0] == 3


@pytest.mark.parametrize(("stand_in", "processes"), [(True, 7), (False, 4)])
def test_processes_are_counted_by_instance_and_version(tmp_path: Path, stand_in: bool, processes: int):
    """Expect 2 of preprocess, 2 of the decoder, which keeps its older version, and 3 of vision if it runs in Python."""
    backends = tmp_path / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    if stand_in:
        (backends / "onnxruntime" / "model.py").touch()
    keeps_two = "version_policy { latest { num_versions: 2 } }"
    models = {
        "preprocess": (MODEL % ("preprocess", "python", 2), ["1"]),
        "decoder": (MODEL % ("decoder", "python", 1) + keeps_two, ["1", "2", "cache"]),
        "vision": (MODEL % ("vision", "onnxruntime", 3), ["1", "2"]),
        "ensemble": ('name: "ensemble" platform: "ensemble"', ["1"]),
    }
    for name, (config, folders) in models.items():
        for folder in folders:
            (tmp_path / "repository" / name / folder).mkdir(parents=True)
        (tmp_path / "repository" / name / "config.pbtxt").write_text(config)
    triton = Installation(tmp_path, backends, tmp_path)
    assert len(expected_regions(tmp_path / "repository", triton)) == processes
