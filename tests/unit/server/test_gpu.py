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


def driver(monkeypatch, version: int, init: int = 0) -> None:
    """Replace the driver's library: `version` is 1000 * major + 10 * minor, `init` what cuInit returns."""

    def get_version(number):
        number._obj.value = version
        return 0

    library = SimpleNamespace(cuInit=lambda flags: init, cuDriverGetVersion=get_version)
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


def test_serve_refuses_before_it_starts_anything(monkeypatch, tmp_path):
    model = tmp_path / "florence2_vision"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").touch()
    (model / "config.pbtxt").write_text(
        'backend: "onnxruntime" '
        'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda" } ] } }'
    )
    monkeypatch.setattr(gpu, "problem", lambda own_onnxruntime: f"no: {own_onnxruntime}")
    with pytest.raises(ServerError, match="no: True"):
        embedded.EmbeddedServer(ServingOptions.on_free_ports(tmp_path), report=lambda line: None).__enter__()
