"""Write a model repository: a copy of model_repository/ with a checkpoint's own names, dims and provenance.

`pipeline` calls it to fill the folder that `installation` then moves to its place.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from florence2.config import ImageConfig
from florence2.errors import CheckpointError
from florence2_export import vision

TEMPLATE = Path(__file__).with_name("model_repository")  # in a checkout a link to the one at its top
TEMPLATE_NAME = "florence2"
ROLES = ("preprocess", "vision", "decoder", "postprocess", "ensemble")
CONFIG = "config.pbtxt"
HEADING = "# Written by `florence2 export`; model_repository/ and export/florence2_export/targets/ explain each value."


def check_target(target: Path, name: str) -> None:
    """Raise CheckpointError on a name that Triton refuses and on the template itself."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise CheckpointError(f"the name {name!r} must consist of letters, digits, '_', '-' and '.'")
    if target.resolve() == TEMPLATE.resolve():
        raise CheckpointError(f"{target} is the template of every export and stays unchanged; choose another directory")
    try:
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"{target} is a file, not a directory")
    except PermissionError as error:
        raise CheckpointError(f"{target} cannot be read: {error.strerror}") from error


def version_directory(repository: Path, name: str, role: str, version: int) -> Path:
    """Return the folder of a version. The ensemble's own stays 1; which versions of the others it uses changes."""
    return repository / f"{name}_{role}" / str(1 if role == "ensemble" else version)


def copy_template(
    repository: Path, name: str, version: int, dims: Mapping[str, list[int]], provenance: Mapping[str, str]
) -> None:
    """Copy the five models under their new names, without weights."""
    for role in ROLES:
        source, directory = TEMPLATE / f"{TEMPLATE_NAME}_{role}", version_directory(repository, name, role, version)
        directory.mkdir(parents=True)  # Triton wants it even where an ensemble's is empty
        for code in (source / "1").glob("*.py"):
            shutil.copyfile(code, directory / code.name)
        committed = (source / CONFIG).read_text(encoding="utf-8")
        if role == "ensemble":
            (directory / ".keep").touch()  # object stores have no empty folders
        write_config(directory.parent, adapt_config(committed, name, version, dims, provenance))


def true_dims(image: ImageConfig, d_model: int) -> dict[str, list[int]]:
    """Return the dims of the tensors that depend on the checkpoint."""
    return {vision.INPUT: [image.height, image.width, 3], vision.OUTPUT: [image.tokens, d_model]}


def adapt_config(
    text: str, name: str, version: int, dims: Mapping[str, list[int]], provenance: Mapping[str, str]
) -> model_config_pb2.ModelConfig:
    """Return a config.pbtxt with models renamed and the given dims; every other setting stays.

    The ensemble names the versions of its steps, and two versions of a step may be loaded: while a server switches from
    one to the next, no request uses models of both (docs/adr/0010).
    """
    config = parse_config(text)
    config.name = _renamed(config.name, name)
    for tensor in (*config.input, *config.output):
        if tensor.name in dims:
            tensor.dims[:] = dims[tensor.name]
    if config.platform == "ensemble":
        for step in config.ensemble_scheduling.step:
            step.model_name, step.model_version = _renamed(step.model_name, name), version
        for key, value in provenance.items():
            config.parameters[key].string_value = value
    else:
        config.version_policy.latest.num_versions = 2
    return config


def read_config(model: Path) -> model_config_pb2.ModelConfig:
    """Return the configuration in a model's folder."""
    return parse_config((model / CONFIG).read_text(encoding="utf-8"))


def write_config(model: Path, config: model_config_pb2.ModelConfig) -> None:
    (model / CONFIG).write_text(f"{HEADING}\n{text_format.MessageToString(config)}", encoding="utf-8")


def parse_config(text: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _renamed(model: str, name: str) -> str:
    return name + model.removeprefix(TEMPLATE_NAME)
