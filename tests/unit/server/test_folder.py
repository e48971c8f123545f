"""The private folder holds copied code and linked weights; a folder that is not an exported repository is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from florence2 import __version__
from florence2.errors import ServerError
from florence2.server import folder
from florence2.server.folder import assemble, models_of, version_problem
from florence2.server.installation import find_wheel


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    repository = tmp_path / "model repository"
    for name in ("vision/1/model.onnx", "vision/1/weights/data.bin", "vision/config.pbtxt", "ensemble/config.pbtxt"):
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('backend: "onnxruntime"' if name == "vision/config.pbtxt" else name)
    for name in ("ensemble/1", "vision/1/__pycache__", ".git"):
        (repository / name).mkdir()
    (repository / "vision/1/model.py").write_text("code")
    return repository


def test_repository_is_mirrored(exported: Path, tmp_path: Path):
    """Link weights to the originals, copy code, keep empty version folders, and leave out other folders."""
    mirror = folder.mirror(tmp_path, exported)
    assert sorted(path.name for path in mirror.iterdir()) == ["ensemble", "vision"]
    assert (mirror / "vision/1/model.onnx").resolve() == (exported / "vision/1/model.onnx").resolve()
    assert (mirror / "vision/1/weights/data.bin").read_text() == "vision/1/weights/data.bin"
    assert (mirror / "vision/1/model.py").read_text() == "code" and not (mirror / "vision/1/model.py").is_symlink()
    assert not (mirror / "vision/config.pbtxt").is_symlink()
    assert (mirror / "ensemble/1").is_dir() and not (mirror / "vision/1/__pycache__").exists()


def test_backends_are_copied(tmp_path: Path):
    """Tritonserver refuses links that leave the backend folder, and starts the stub as a program."""
    triton = assemble(tmp_path, find_wheel())
    assert triton.backends == tmp_path / "backends"
    backends = list((tmp_path / "backends").rglob("*"))
    assert {path.name for path in backends} >= {"libtriton_python.so", "triton_python_backend_utils.py", "model.py"}
    assert not any(path.is_symlink() for path in backends)
    assert (tmp_path / "backends/python/triton_python_backend_stub").stat().st_mode & 0o111
    assert [path.resolve() for path in (tmp_path / "lib").iterdir()] == [find_wheel().libpython.resolve()]


def test_missing_repository_is_refused_with_the_command_that_creates_it(tmp_path: Path, monkeypatch):
    """Help newcomers with their first mistake; after `make demo`, there is one that can be served."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServerError, match=r"there is no model repository .*; create it with: florence2 export"):
        models_of(tmp_path / "nowhere")
    with pytest.raises(ServerError, match="contains no models; create them with: florence2 export"):
        models_of(tmp_path)
    (tmp_path / "build" / "demo" / "model_repository").mkdir(parents=True)
    with pytest.raises(ServerError, match=r"with: florence2 serve --repository build/demo/model_repository, or create"):
        models_of(tmp_path / "nowhere")


def test_repository_of_the_checkout_is_refused():
    """It contains only code and configs; export creates a repository with weights."""
    checkout = Path(__file__).parents[3] / "model_repository"
    with pytest.raises(
        ServerError, match=r"contains no weights: it is a template, not an exported .* florence2 export"
    ):
        models_of(checkout)


def test_an_export_of_another_minor_version_is_reported(tmp_path: Path):
    """A patch of the same minor version serves it, and so does a repository that says nothing of its version."""
    config = tmp_path / "config.pbtxt"
    config.write_text('name: "florence2_ensemble"')
    assert version_problem([tmp_path]) is None
    for version, reported in ((__version__, False), (__version__ + ".dev1", False), ("0.0.7", True)):
        config.write_text(f'parameters {{\n  key: "florence2"\n  value {{\n    string_value: "{version}"\n  }}\n}}\n')
        assert ("exported by florence2 0.0.7, and this is " in (version_problem([tmp_path]) or "")) is reported
