"""`florence2 tasks`: the table of tasks. `florence2 info`: what exported models say about themselves.

An export describes itself in the parameters of the ensemble's config.pbtxt, and Triton shows configurations to clients.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from florence2.errors import CheckpointError, InternalError, InvalidRequest
from florence2.server.options import DEMO
from florence2.tasks import TASKS
from florence2_client.cli.arguments import (
    add_connection,
    add_json,
    connection,
    require_without,
    seconds,
    wants_json,
)
from florence2_client.cli.console import ANSWERS, INPUTS, json_line, table, task_lines
from florence2_client.description import Description, description_of
from florence2_client.methods import DEFAULT_MODEL
from florence2_client.transports import Address, parse_url
from florence2_client.transports.errors import RESTRICTED, not_shown
from florence2_client.transports.grpc import connection_arguments, translated
from florence2_client.transports.http import fetch, refusal

FIRST = "checkpoint revision weights_sha256 layout adapter adapter_revision adapter_sha256".split()
LAST = "exported florence2 torch transformers onnx onnxscript safetensors".split()  # settings come before these
TASKS_EXAMPLES = """\
examples:
  florence2 tasks
  florence2 tasks | jq -r 'select(.takes == "region").task'
"""
INFO_EXAMPLES = """\
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


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Describe `florence2 tasks`."""
    parser.description = "List the tasks: their names, what they take besides the image, and what they answer with."
    parser.epilog = TASKS_EXAMPLES
    parser.set_defaults(command=print_tasks)
    add_json(parser)


def print_tasks(options: argparse.Namespace) -> int:
    """Print the table of tasks."""
    if not wants_json(options):
        print(*task_lines(), sep="\n")
        return 0
    for task in TASKS.values():
        takes, answers = INPUTS[task.input], ANSWERS[task.grammar]
        row = {"task": task.name, "token": task.token, "takes": takes, "answers": answers, "summary": task.summary}
        print(json_line(row))
    return 0


def add_info(parser: argparse.ArgumentParser) -> None:
    """Describe `florence2 info`."""
    parser.description = "Show which checkpoints a server or a repository holds, and how and when they were exported."
    parser.epilog = INFO_EXAMPLES
    parser.set_defaults(command=print_models)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--repository", type=Path, metavar="DIR", help="a folder made by export, served or not")
    parser.add_argument(
        "--timeout", type=seconds, default=20.0, metavar="S", help="give up after S seconds (default: %(default)g)"
    )
    add_json(parser)
    add_connection(parser, place)


def print_models(options: argparse.Namespace) -> int:
    """Print what a repository or a server holds."""
    require_without(options, ["--header", "--ca", "--timeout"], "--repository")
    server = connection(options)
    if options.repository:
        models = read_repository(options.repository)
    else:
        address = parse_url(server["url"], server["headers"], server["tls"])
        models = ask_server(address, server["model"], options.timeout)
    if "--model" in options.given:
        names = ", ".join(model.name for model in models)
        models = [model for model in models if model.name == server["model"]]
        if not models:
            raise InvalidRequest(f"there is no model {server['model']!r}; there is {names}")
    for place, model in enumerate(models):
        if wants_json(options):
            print(json_line({"model": model.name, **model.description}))
            continue
        rows = [(key.replace("_", " "), value) for key, value in model.description.items()]
        print(*[""] * bool(place), model.name, *(f"  {line}" for line in table(rows, heading=False)), sep="\n")
    return 0


def read_repository(directory: Path) -> list[Model]:
    """Return the models of a repository. Raise CheckpointError if it holds none with a description."""
    if not directory.is_dir():
        demo = f"; the demo's is there: --repository {DEMO}" if DEMO.is_dir() else ""
        raise CheckpointError(f"there is no directory {directory}{demo}")
    models = []
    for path in sorted(directory.glob("*/config.pbtxt")):
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        except (OSError, ValueError, text_format.ParseError) as error:
            raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if config.platform == "ensemble" and config.parameters:  # it has no other parameters than its description
            parameters = config.parameters
            description = {key: parameters[key].string_value for key in _ordered(parameters)}
            models.append(Model(config.name, description))
    if not models:
        raise CheckpointError(f"{directory} holds no model that `florence2 export` made")
    return models


def ask_server(address: Address, unlisted: str = DEFAULT_MODEL, timeout: float = 20.0) -> list[Model]:
    """Return the models of a running server, or only `unlisted` if it hides its list, as the embedded server does.

    Raise the errors of `florence2.errors`.
    """
    read_configs = _configs_over_grpc if address.scheme.startswith("grpc") else _configs_over_http
    models = []
    for config in read_configs(address, unlisted, timeout):
        told = description_of(config)
        models += [Model(config["name"], {key: told[key] for key in _ordered(told)})] if told else []
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
            raise not_shown(address) from error
        raise translated(address, error, timeout) from error
    finally:
        client.close()


def _configs_over_http(address: Address, unlisted: str, timeout: float) -> list[dict[str, Any]]:
    try:
        names = _ready(_read_json(address, "POST", "/v2/repository/index", timeout))
    except InvalidRequest:  # hidden
        names = [unlisted]
    return [_read_json(address, "GET", f"/v2/models/{quote(name)}/config", timeout) for name in names]


def _read_json(address: Address, method: str, path: str, timeout: float) -> Any:
    status, content = fetch(address, method, path, timeout)
    if status == 403:
        raise not_shown(address)
    try:
        if status == 200:
            return json.loads(content)
    except ValueError:
        status = 502
    raise refusal(address, status, content)


def _ready(index: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of the models that are ready; the index has an item for each version."""
    try:
        return sorted({str(model["name"]) for model in index if model.get("state") == "READY"})
    except (TypeError, AttributeError, KeyError) as error:
        raise InternalError("the server's list of models is not one of Triton's") from error
