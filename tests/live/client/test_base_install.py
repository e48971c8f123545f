"""What `pip install florence2-triton` brings: the client on a new Python with numpy 2, and the export."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCENE = ROOT / "demo" / "images" / "scene.png"
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
NOT_IN_THE_BASE = ("torch", "tokenizers", "huggingface_hub", "transformers", "onnxruntime", "pytriton", "psutil")

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    words = [str(word) for word in command]
    environment = {**os.environ, **environment}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def newest_python() -> Path:
    """Python 3.13 or newer where there is one; the client's CI runs this test on all of them."""
    for version in ("3.14", "3.13"):
        candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for python in filter(None, candidates):
            done = subprocess.run([python, "-c", "import venv"], capture_output=True, check=False)
            if done.returncode == 0:  # a shim of pyenv may name a version that is not active
                return Path(python)
    return Path(sys.executable)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the checkout: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    probe = [sys.executable, *PIP, "download", "--no-deps", "--dest", folder, "setuptools>=77"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("PyPI cannot be reached, and pip needs it to build and install the wheel")
    for name in ("client", "export", "florence2", "model_repository", "LICENSE", "README.md", "pyproject.toml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name, **({"symlinks": True} if source.is_dir() else {}))
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", folder / "wheel", folder)
    (built,) = (folder / "wheel").iterdir()
    return built


def test_the_client_works_on_a_new_python_with_numpy_2(wheel, server, tmp_path):
    """The base install resolves to numpy 2, brings nothing of the server, and gets answers over gRPC and HTTP."""
    environment = tmp_path / "environment"
    run(newest_python(), "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, *PIP, "install", wheel)
    versions = run(python, "-c", "import sys, numpy; print(sys.version_info[:2] >= (3, 13), numpy.__version__)").split()
    if newest_python() != Path(sys.executable):
        assert versions[0] == "True"
    assert int(versions[1].split(".")[0]) >= 2
    installed = run(python, *PIP, "list", "--format=freeze")
    assert not re.search(rf"^(nvidia-)?({'|'.join(NOT_IN_THE_BASE)})==", installed, re.M | re.I), installed
    added = run(python, "-m", "pip", "install", "--dry-run", "florence2-triton[pdf]")  # as messages say
    assert re.search(r"Would install .*pypdfium2", added)
    for program in ("client_sync.py", "client_async.py"):
        for url in (server.grpc_url, server.http_url):
            assert run(python, ROOT / "examples" / program, SCENE, url, cwd=tmp_path).strip()
    florence2 = environment / "bin" / "florence2"
    assert re.fullmatch(r"florence2 \d+\.\d+\.\d+\n", run(florence2, "--version"))
    assert "bboxes" in run(florence2, "run", SCENE, "--task", "od", "--url", server.grpc_url, cwd=tmp_path)
    assert "alive" in run(florence2, "health", "--url", server.grpc_url)
    refused = subprocess.run([florence2, "serve"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert (
        "needs Python 3.10, 3.11 or 3.12" in refused.stderr or "pip install 'florence2-triton[serve]'" in refused.stderr
    )


def test_the_export_works_from_the_wheel(wheel, checkpoint, tmp_path):
    """Away from any checkout, with the templates that the wheel carries."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site-packages")
    code = "import sys, florence2_export; from florence2_client.cli import main; print(florence2_export.__file__); "
    code += "sys.exit(main(['export', *sys.argv[1:]]))"
    arguments = (checkpoint, "--repository", tmp_path / "models", "--precision", "float32")
    printed = run(sys.executable, "-c", code, *arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site-packages"))
    assert printed.startswith(str(tmp_path / "site-packages"))
    models = {path.name for path in (tmp_path / "models").iterdir()}
    assert models == {f"florence2_{role}" for role in ("preprocess", "vision", "decoder", "postprocess", "ensemble")}
    assert (tmp_path / "models" / "florence2_decoder" / "1" / "model.py").is_file()
