"""`florence2 info`: what exported models say about themselves, read from a repository or from a running server.

An export describes itself in the parameters of the ensemble's config.pbtxt, and Triton shows configurations to clients.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from florence2.errors import CheckpointError, InvalidRequest
from florence2_client.cli.arguments import add_connection, add_json, connection, wants_json
from florence2_client.cli.console import table
from florence2_client.methods import DEFAULT_MODEL
from florence2_client.transports import Address, parse_url
from florence2_client.transports.grpc import connection_arguments, translated
from florence2_client.transports.http import fetch, refusal

Description: TypeAlias = "dict[str, str]"

RESTRICTED = "is restricted"  # Triton's words over both protocols
FIRST = "checkpoint revision weights_sha256 layout adapter adapter_revision adapter_sha256".split()
LAST = "exported florence2 torch transformers onnx onnxscript safetensors".split()  # settings come before these
EXAMPLES = """\
examples:
  florence2 info                                  the models of the server on this machine
  florence2 info --url http://gpu-box:8000
  florence2 info --repository build/model_repository | jq .checkpoint
"""


@dataclass(frozen=True)
class Model:
    """An ensemble and the description its export wrote: the checkpoint, how and when it was exported."""

    name: str
    description: Description

    def to_dict(self) -> Description:
        """Return all of it for JSON."""
        return {"model": self.name, **self.description}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Show which checkpoints a server or a repository holds, and how and when they were exported."
    parser.epilog = EXAMPLES
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--repository", type=Path, metavar="DIR", help="a folder made by export, served or not")
    parser.add_argument("--timeout", type=float, default=20.0, metavar="S", help="seconds (default: %(default)g)")
    add_json(parser)
    add_connection(parser, place)


def run(options: argparse.Namespace) -> int:
    """Print the models."""
    if options.repository:
        models = read_repository(options.repository)
    else:
        server = connection(options)
        models = ask_server(
            parse_url(server["url"], server["headers"], server["tls"]), server["model"], options.timeout
        )
    lines = (json.dumps(model.to_dict()) for model in models) if wants_json(options) else _text_lines(models)
    print(*lines, sep="\n")
    return 0


def _text_lines(models: Iterable[Model]) -> Iterator[str]:
    for place, model in enumerate(models):
        if place:
            yield ""
        yield model.name
        rows = [(key.replace("_", " "), value) for key, value in model.description.items()]
        yield from (f"  {line}" for line in table(rows, heading=False))


def read_repository(directory: Path) -> list[Model]:
    """Return the models of a repository. Raise CheckpointError if it holds none with a description."""
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}")
    found = [_read_model(path) for path in sorted(directory.glob("*/config.pbtxt"))]
    models = [model for model in found if model.description]
    if not models:
        raise CheckpointError(f"{directory} holds no model that `florence2 export` made")
    return models


def _read_model(path: Path) -> Model:
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    # An ensemble has no other parameters than its description.
    parameters = config.parameters if config.platform == "ensemble" else {}
    return Model(config.name, {key: parameters[key].string_value for key in _ordered(parameters)})


def ask_server(address: Address, unlisted: str = DEFAULT_MODEL, timeout: float = 20.0) -> list[Model]:
    """Return the models of a running server, or only `unlisted` if it hides its list, as the embedded server does.

    Raise the errors of `florence2.errors`.
    """
    read_configs = _configs_over_grpc if address.scheme.startswith("grpc") else _configs_over_http
    models = []
    for config in read_configs(address, unlisted, timeout):
        parameters = config.get("parameters", {}) if config.get("platform") == "ensemble" else {}
        description = {key: parameters[key]["string_value"] for key in _ordered(parameters)}
        models += [Model(config["name"], description)] if description else []
    if not models:
        raise InvalidRequest(f"the server at {address} has no model that `florence2 export` made")
    return models


def _ordered(keys: Iterable[str]) -> list[str]:
    """Return the keys of a description in their order, which protobuf's maps do not keep."""
    known, ends = ([key for key in part if key in keys] for part in (FIRST, LAST))
    return [*known, *sorted(set(keys) - {*FIRST, *LAST}), *ends]


def _configs_over_grpc(address: Address, unlisted: str, timeout: float) -> list[dict[str, Any]]:
    client = triton.InferenceServerClient(**connection_arguments(address))
    call = {"as_json": True, "client_timeout": timeout, "headers": dict(address.headers)}
    try:
        try:
            index = client.get_model_repository_index(**call).get("models", [])
            names = _ready(index)
        except InferenceServerException as error:
            if RESTRICTED not in error.message():
                raise
            names = [unlisted]
        return [client.get_model_config(name, **call)["config"] for name in names]
    except InferenceServerException as error:
        if RESTRICTED in error.message():
            raise InvalidRequest(f"{address} does not show what it serves") from error
        raise translated(address, error, timeout) from error
    finally:
        client.close()


def _configs_over_http(address: Address, unlisted: str, timeout: float) -> list[dict[str, Any]]:
    try:
        names = _ready(_read_json(address, "POST", "/v2/repository/index", timeout))
    except InvalidRequest:  # hidden
        names = [unlisted]
    return [_read_json(address, "GET", f"/v2/models/{name}/config", timeout) for name in names]


def _read_json(address: Address, method: str, path: str, timeout: float) -> Any:
    status, content = fetch(address, method, path, timeout)
    if status == 403:
        raise InvalidRequest(f"{address} does not show what it serves")
    try:
        if status == 200:
            return json.loads(content)
    except ValueError:
        status = 502
    raise refusal(status, content)


def _ready(index: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of the models that are ready; the index has an item for each version."""
    return sorted({model["name"] for model in index if model.get("state") == "READY"})
