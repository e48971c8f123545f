"""The private folder that a server runs in, assembled for one run and removed after it.

backends/python/       NVIDIA's Python backend with the stub of this Python version
backends/onnxruntime/  our stand-in; a real C++ backend of that name would need no change in the repository
lib/                   only libpython: other libraries in its folder must not come before the system's
repository/            a mirror of the model repository. The stub always writes __pycache__ next to every model.py, so
                       code is copied; weights, which may be gigabytes, are linked
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from florence2 import __version__, triton
from florence2.errors import ServerError
from florence2.server.installation import Installation, Wheel
from florence2.server.options import DEMO

STAND_IN = Path(triton.__file__).with_name("onnxruntime_backend.py")
EXPORTED_BY = re.compile(r'key:\s*"florence2"\s*value\s*\{\s*string_value:\s*"([^"]+)"')
NEEDS_ONNX_FILE = re.compile(r'^\s*backend\s*:\s*"onnxruntime"', re.MULTILINE)


def assemble(folder: Path, wheel: Wheel) -> Installation:
    """Fill the empty `folder` from the wheel. Tritonserver refuses links as backends, so they are copied (3 MB)."""
    python_backend = folder / "backends" / "python"
    shutil.copytree(wheel.python_backend, python_backend, ignore=shutil.ignore_patterns("__pycache__"))
    stub = shutil.copy(wheel.stub, python_backend)
    os.chmod(stub, 0o755)
    stand_in = folder / "backends" / "onnxruntime"
    stand_in.mkdir()
    shutil.copyfile(STAND_IN, stand_in / "model.py")
    (folder / "lib").mkdir()
    (folder / "lib" / wheel.libpython.name).symlink_to(wheel.libpython)
    return Installation(
        wheel.tritonserver, folder / "backends", wheel.caches, (wheel.libraries, folder / "lib"), gpu=False
    )


def mirror(folder: Path, repository: Path) -> Path:
    """Mirror a model repository in `folder` and return the mirror's path."""
    for model in models_of(repository):
        copy_code_and_link_data(model, folder / "repository" / model.name)
    return folder / "repository"


def models_of(repository: Path) -> list[Path]:
    """Return the folders of all models. Raise ServerError if the repository cannot be served."""
    command = f"florence2 export florence-community/Florence-2-base-ft --repository {repository}"
    if not repository.is_dir():
        demo = f"serve the demo's with: florence2 serve --repository {DEMO}, or " if DEMO.is_dir() else ""
        raise ServerError(f"there is no model repository {repository}; {demo}create it with: {command}")
    models = sorted(path for path in repository.iterdir() if (path / "config.pbtxt").is_file())
    if not models:
        raise ServerError(f"{repository} contains no models; create them with: {command}")
    for model in models:
        config = (model / "config.pbtxt").read_text(encoding="utf-8")
        if NEEDS_ONNX_FILE.search(config) and not list(model.glob("*/model.onnx")):
            raise ServerError(
                f"{repository} contains no weights: it is a template, not an exported repository; create one with: "
                "florence2 export florence-community/Florence-2-base-ft"
            )
    return models


def version_problem(models: list[Path]) -> str | None:
    """Return a sentence if a model was exported by another minor version than this one."""
    configs = ((model / "config.pbtxt").read_text(encoding="utf-8") for model in models)
    others = {version for config in configs for version in EXPORTED_BY.findall(config)}
    others = {version for version in others if version.split(".")[:2] != __version__.split(".")[:2]}
    if not others:
        return None
    return f"exported by florence2 {', '.join(sorted(others))}, and this is {__version__}; export again if it fails"


def copy_code_and_link_data(source: Path, target: Path) -> None:
    """Copy code and configs, link all other files, and keep empty folders: an ensemble's version is one."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name == "__pycache__":
            continue
        if path.is_dir():
            copy_code_and_link_data(path, target / path.name)
        elif path.suffix in (".py", ".pbtxt"):
            shutil.copyfile(path, target / path.name)
        else:
            (target / path.name).symlink_to(path.resolve())
