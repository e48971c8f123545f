"""A driver and packages that do not fit are explained in one sentence, before anything starts."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import pytest

from florence2.errors import ServerError
from florence2.server import embedded, gpu
from florence2.server.options import ServingOptions

TORCH = "from typing import Optional\n__version__ = '2.13.0'\ncuda: Optional[str] = {}\nhip: Optional[str] = None\n"


def driver(monkeypatch, version: int, init: int = 0, gpus: int = 1) -> None:
    """Replace the driver's library: `version` is 1000 * major + 10 * minor, `init` what cuInit returns."""

    def returns(value):
        def call(number):
            number._obj.value = value
            return 0

        return call

    library = SimpleNamespace(
        cuInit=lambda flags: init, cuDriverGetVersion=returns(version), cuDeviceGetCount=returns(gpus)
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Return a function that replaces torch and onnxruntime by builds for these CUDA versions; None is a CPU build."""

    def install(torch: str | None, onnxruntime: str | None) -> None:
        for name in ("torch", "onnxruntime"):
            (tmp_path / name / "capi").mkdir(parents=True)
            (tmp_path / name / "__init__.py").touch()
            monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / "torch/version.py").write_text(TORCH.format(repr(torch)))
        info = "package_name = 'onnxruntime'\n" if onnxruntime is None else f"cuda_version = '{onnxruntime}'\n"
        (tmp_path / "onnxruntime/capi/build_and_package_info.py").write_text(info)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_without_a_driver_nothing_is_asked_for(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.driver_cuda() is None and gpu.problem() is None and gpu.main() == 1


def test_a_hidden_gpu_is_no_gpu(monkeypatch):
    """With CUDA_VISIBLE_DEVICES= the driver answers CUDA_ERROR_NO_DEVICE, and the server runs on the CPU."""
    driver(monkeypatch, 13000, init=100)
    assert gpu.driver_cuda() is None


@pytest.mark.parametrize(
    ("version", "torch", "onnxruntime", "sentence"),
    [
        (13000, "13.0", "13.0", None),
        (13020, "13.0", "13.0", None),
        (13000, "12.8", "12.8", None),
        (12040, "12.8", "12.6", None),  # minor releases are compatible
        (13000, None, "13.0", "the installed torch is a CPU build; run `pip uninstall -y torch; pip install torch=="),
        (12040, "13.0", "13.0", "the NVIDIA driver supports CUDA 12.4 at most, and the installed torch needs 13.0"),
        (13000, "13.0", None, "onnxruntime is a CPU build; run `pip uninstall -y onnxruntime; pip install"),
        (13000, "12.8", "13.0", "onnxruntime-gpu is for CUDA 13.0 and torch for CUDA 12.8"),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(monkeypatch, packages, version, torch, onnxruntime, sentence):
    driver(monkeypatch, version)
    packages(torch, onnxruntime)
    found = gpu.problem()
    assert found is None if sentence is None else sentence in found


def test_the_containers_own_onnxruntime_is_not_the_python_package(monkeypatch, packages):
    driver(monkeypatch, 13000)
    packages("13.0", None)
    assert gpu.problem(own_onnxruntime=False) is None


@pytest.mark.parametrize(("version", "code"), [(13000, 0), (13010, 0), (12080, 1)])
def test_make_install_learns_which_build_to_take(monkeypatch, capsys, version, code):
    driver(monkeypatch, version)
    assert gpu.main() == code
    assert ("supports CUDA 12.8 at most" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize(
    ("variable", "gpus", "seen"),
    [
        (None, 0, []),
        (None, 1, ["0"]),
        (None, 2, ["0", "1"]),
        ("1", 1, ["1"]),
        ("GPU-5a, GPU-7c", 2, ["GPU-5a", "GPU-7c"]),
        ("3,9", 1, ["3"]),  # the driver ignores what follows a GPU that is not there
    ],
)
def test_gpus_have_the_names_that_choose_them(monkeypatch, variable, gpus, seen):
    driver(monkeypatch, 13000, gpus=gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert gpu.visible_gpus() == seen


@pytest.mark.parametrize(("gpus", "given"), [([], None), (["1"], "1"), (["GPU-5a", "GPU-7c"], "GPU-5a")])
def test_a_server_sees_one_gpu(monkeypatch, tmp_path, gpus, given):
    """With more than one, Triton would start an engine on each, and requests would go to either."""
    started, said = [], []

    def start(command, env, **_pipes):
        started.append(env.get("CUDA_VISIBLE_DEVICES"))
        raise ServerError("not in this test")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "problem", lambda own_onnxruntime: None)
    monkeypatch.setattr(gpu, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(embedded.subprocess, "Popen", start)
    with pytest.raises(ServerError, match="not in this test"):
        embedded.EmbeddedServer(ServingOptions.on_free_ports(repository_for_gpus(tmp_path)), said.append).__enter__()
    assert started == [given]
    assert len(said) == (len(gpus) > 1) and all("2 GPUs are visible" in line and "GPU-5a" in line for line in said)


def test_serve_refuses_before_it_starts_anything(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "problem", lambda own_onnxruntime: f"no: {own_onnxruntime}")
    options = ServingOptions.on_free_ports(repository_for_gpus(tmp_path))
    with pytest.raises(ServerError, match="no: True"):
        embedded.EmbeddedServer(options, report=lambda line: None).__enter__()


def repository_for_gpus(tmp_path):
    model = tmp_path / "florence2_vision"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").touch()
    (model / "config.pbtxt").write_text(
        'backend: "onnxruntime" '
        'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda" } ] } }'
    )
    return tmp_path
