"""Write a model repository: a copy of model_repository/ with a checkpoint's own names, dims and provenance.

`pipeline` calls it to fill the folder that `installation` then moves to its place.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import florence2
from florence2.config import ImageConfig
from florence2.errors import CheckpointError
from florence2_export import vision
from florence2_export.checkpoint import Checkpoint
from florence2_export.weight_files import content_hash

TEMPLATE = Path(__file__).with_name("model_repository")  # in a checkout a link to the folder at its top
TEMPLATE_NAME = "florence2"
ROLES = ("preprocess", "vision", "decoder", "postprocess", "ensemble")
CONFIG = "config.pbtxt"
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "safetensors")  # whose versions belong to the provenance
HEADING = "# Written by `florence2 export`; model_repository/ and export/florence2_export/targets/ explain each value."


def check_target(target: Path, name: str) -> None:
    """Raise CheckpointError if Triton refuses the name, or if `target` is a file or the template itself."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise CheckpointError(
            f"the name {name!r} must consist of letters, digits, '_', '-' and '.', and begin with a letter or a digit"
        )
    if target.resolve() == TEMPLATE.resolve():
        raise CheckpointError(f"{target} is the template of every export; choose another --repository")
    try:
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"{target} is a file; choose a directory as --repository")
    except PermissionError as error:
        raise CheckpointError(f"{target} cannot be read: {error.strerror}") from error


def version_directory(repository: Path, name: str, role: str, version: int) -> Path:
    """Return the folder of a version. The ensemble itself stays at 1 and names the versions of its steps."""
    return repository / f"{name}_{role}" / str(1 if role == "ensemble" else version)


def copy_template(
    repository: Path, name: str, version: int, dims: Mapping[str, list[int]], provenance: Mapping[str, str]
) -> None:
    """Copy the five models without weights, under their new names."""
    for role in ROLES:
        source, directory = TEMPLATE / f"{TEMPLATE_NAME}_{role}", version_directory(repository, name, role, version)
        directory.mkdir(parents=True)  # Triton requires the folder even if it is empty, as in an ensemble
        for code in (source / "1").glob("*.py"):
            shutil.copyfile(code, directory / code.name)
        committed = (source / CONFIG).read_text(encoding="utf-8")
        if role == "ensemble":
            (directory / ".keep").touch()  # object stores cannot hold empty folders
        write_config(directory.parent, adapt_config(committed, name, version, dims, provenance))


def true_dims(image: ImageConfig, d_model: int) -> dict[str, list[int]]:
    """Return the dims of tensors whose dims depend on the checkpoint."""
    return {vision.INPUT: [image.height, image.width, 3], vision.OUTPUT: [image.tokens, d_model]}


def adapt_config(
    text: str, name: str, version: int, dims: Mapping[str, list[int]], provenance: Mapping[str, str]
) -> model_config_pb2.ModelConfig:
    """Return a config.pbtxt with new names and the given dims. All other settings stay.

    The ensemble names the versions of its steps, and two versions of a step may be loaded, so that no request mixes
    models of both while a server switches versions (docs/adr/0010).
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
    """Write the configuration to a model's folder."""
    (model / CONFIG).write_text(f"{HEADING}\n{text_format.MessageToString(config)}", encoding="utf-8")


def parse_config(text: str) -> model_config_pb2.ModelConfig:
    """Return the configuration that a config.pbtxt contains."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_provenance(checkpoint: Checkpoint, settings: Mapping[str, str]) -> dict[str, str]:
    """Return by name which checkpoint, settings and tools an export is made from, and when.

    `settings` are the options that shape the export, such as its precision. The result becomes the parameters of the
    ensemble, where `florence2 info` and Triton's model configuration show it. Equal exports have equal provenance
    except for `exported`, the time: SOURCE_DATE_EPOCH if it is set (https://reproducible-builds.org), else now.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", str(int(time.time())))
    if not epoch.isdecimal():
        raise CheckpointError(f"SOURCE_DATE_EPOCH is {epoch!r}; set it to a number of seconds since 1970, or unset it")
    facts: dict[str, str | None] = {
        "checkpoint": checkpoint.source.name,
        "revision": checkpoint.source.revision,
        "weights_sha256": content_hash(checkpoint.files),
        "layout": "microsoft" if checkpoint.microsoft else "native",
    }
    if checkpoint.processor is not checkpoint.source:
        facts |= {"processor": checkpoint.processor.name, "processor_revision": checkpoint.processor.revision}
    if checkpoint.adapter:
        facts |= {
            "adapter": checkpoint.adapter.source.name,
            "adapter_revision": checkpoint.adapter.source.revision,
            "adapter_sha256": content_hash(checkpoint.adapter.files),
        }
    facts |= {
        **settings,
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch))),
        "florence2": florence2.__version__,
        **{tool: installed_version(tool) for tool in TOOLS},
    }
    return {key: value for key, value in facts.items() if value is not None}


def _renamed(model: str, name: str) -> str:
    return name + model.removeprefix(TEMPLATE_NAME)
