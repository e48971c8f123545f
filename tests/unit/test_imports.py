"""The rooms keep their doors: imports point one way, and the light parts stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "florence2" / "engine"
MODULES = sorted((ROOT / "florence2").rglob("*.py"))
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def imported_by(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@every_module
def test_the_library_imports_none_of_its_users(path):
    """model_repository, export, client, demo and bench build on florence2, never the other way round."""
    assert not roots(imported_by(path)) & {"export", "florence2_client", "demo", "bench"}


@every_module
def test_only_the_engine_needs_torch_and_no_module_transformers(path):
    """The server runs without transformers; preprocessing and clients run without torch."""
    heavy = roots(imported_by(path)) & {"torch", "transformers", "safetensors"}
    assert heavy <= ({"torch", "safetensors"} if ENGINE in path.parents else set())


def test_the_backends_of_the_engine_are_behind_one_door():
    """Neither imports the other, and of the engine only what creates a backend knows them."""
    packages = ("florence2.engine.cpu", "florence2.engine.cuda")
    users = {
        (path.relative_to(ENGINE).parts[0], package)
        for path in ENGINE.rglob("*.py")
        for package in packages
        if any(name == package or name.startswith(f"{package}.") for name in imported_by(path))
    }
    assert users == {
        ("cpu", packages[0]),
        ("cuda", packages[1]),
        ("weights.py", packages[0]),
        ("weights.py", packages[1]),
    }


def test_only_two_modules_know_triton():
    """The adapter, and the backend that Triton itself loads."""
    users = {p.name for p in (ROOT / "florence2").rglob("*.py") if "triton_python_backend_utils" in imported_by(p)}
    assert users <= {"adapter.py", "onnxruntime_backend.py"}


@pytest.mark.parametrize("module", ["beam", "scheduler", "sequence"])
def test_the_decisions_of_the_engine_are_pure_python(module):
    """Scheduling and beam search never touch a tensor."""
    assert not roots(imported_by(ROOT / "florence2" / "engine" / f"{module}.py")) & {"torch", "numpy"}


@pytest.mark.parametrize("path", sorted((ROOT / "model_repository").rglob("model.py")), ids=lambda path: path.parts[-3])
def test_model_adapters_are_wiring(path):
    """Logic is in florence2; a model.py fits on one screen and a half."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


def test_import_florence2_needs_numpy_at_most():
    """`import florence2` with its table and config drags nothing heavy along."""
    code = (
        "import sys, florence2, florence2.tasks, florence2.errors, florence2.config\n"
        "heavy = {'torch', 'PIL', 'transformers', 'tritonclient', 'tokenizers', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_client_needs_only_numpy_pillow_and_tritonclient():
    """The library and every command but serve and export start without what the server needs, and without extras."""
    code = (
        "import sys\n"
        "absent = 'tokenizers torch transformers onnxruntime onnx safetensors pytriton supervision shtab '\n"
        "absent += 'huggingface_hub yaml gevent geventhttpclient'\n"
        "sys.modules.update(dict.fromkeys(absent.split()))\n"
        "import florence2_client.cli, florence2_client.transports.grpc\n"
        "florence2_client.cli.parser()\n"
        "client = florence2_client.Client('grpc://127.0.0.1:1')\n"
        "client.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_client_library_does_not_import_the_command_line():
    """A program that imports the client loads neither the commands nor what prints their tables."""
    code = (
        "import sys, florence2_client\n"
        "commands = {'florence2_client.cli', 'rich'} & set(sys.modules)\n"
        "assert not commands, commands"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
