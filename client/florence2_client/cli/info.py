"""`florence2 info`: what exported models say of themselves, read from a repository or asked of a running server.

An export writes its story into the parameters of the ensemble's config.pbtxt, and Triton shows configurations to anyone
who asks.
"""

from __future__ import annotations

import argparse
import http
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from florence2.errors import CheckpointError, InvalidRequest
from florence2_client.cli.arguments import add_json, wants_json
from florence2_client.cli.console import table
from florence2_client.client import DEFAULT_MODEL
from florence2_client.transports.base import DEFAULT_URL, Address, parse_url
from florence2_client.transports.errors import HTTP_STATUS, NO_CONNECTION, connection_failed, triton_error

Story: TypeAlias = "dict[str, str]"

SECONDS = 20.0  # for a server to answer
RESTRICTED = "is restricted"  # Triton's word over both protocols
FIRST = "checkpoint revision weights_sha256 layout adapter adapter_revision adapter_sha256".split()
LAST = "exported florence2 torch transformers onnx onnxscript safetensors".split()  # settings stand before these
EXAMPLES = """\
examples:
  florence2 info                                  the models of the server on this machine
  florence2 info --url http://gpu-box:8000
  florence2 info --repository build/model_repository | jq .checkpoint
"""


@dataclass(frozen=True)
class Model:
    """An ensemble and what its export said: the checkpoint, how and when it was exported."""

    name: str
    story: Story

    def to_dict(self) -> Story:
        return {"model": self.name, **self.story}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Tell which checkpoints a server or a repository holds, and how and when they were exported."
    parser.epilog = EXAMPLES
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--url", default=DEFAULT_URL, metavar="U", help="a running server (default: %(default)s)")
    place.add_argument("--repository", type=Path, metavar="DIR", help="a folder made by export, served or not")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help="the ensemble, of a server that does not list its models\n(default: %(default)s)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    models = read_repository(options.repository) if options.repository else ask_server(options.url, options.model)
    lines = (json.dumps(model.to_dict()) for model in models) if wants_json(options) else _for_people(models)
    print(*lines, sep="\n")
    return 0


def _for_people(models: Iterable[Model]) -> Iterator[str]:
    for place, model in enumerate(models):
        if place:
            yield ""
        yield model.name
        rows = [(key.replace("_", " "), told) for key, told in model.story.items()]
        yield from (f"  {line}" for line in table(rows, heading=False))


def read_repository(directory: Path) -> list[Model]:
    """All models of a repository. Raises CheckpointError if it is none, or holds none that tells a story."""
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}")
    found = [_model_of(path) for path in sorted(directory.glob("*/config.pbtxt"))]
    models = [model for model in found if model.story]
    if not models:
        raise CheckpointError(f"{directory} holds no model that `florence2 export` made")
    return models


def _model_of(path: Path) -> Model:
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    # An ensemble has no parameters but the story.
    parameters = config.parameters if config.platform == "ensemble" else {}
    return Model(config.name, {key: parameters[key].string_value for key in _ordered(parameters)})


def ask_server(url: str, unlisted: str = DEFAULT_MODEL) -> list[Model]:
    """All models of a running server, or `unlisted` of one that keeps its list back, as the embedded one does.

    Raises the errors of `florence2.errors`.
    """
    address = parse_url(url)
    configs = (_ask_grpc if address.scheme.startswith("grpc") else _ask_http)(address, unlisted)
    models = []
    for config in configs:
        parameters = config.get("parameters", {}) if config.get("platform") == "ensemble" else {}
        story = {key: parameters[key]["string_value"] for key in _ordered(parameters)}
        models += [Model(config["name"], story)] if story else []
    if not models:
        raise InvalidRequest(f"the server at {address} has no model that `florence2 export` made")
    return models


def _ordered(keys: Iterable[str]) -> list[str]:
    """A story in its order, which protobuf's maps do not keep."""
    known, ends = ([key for key in part if key in keys] for part in (FIRST, LAST))
    return [*known, *sorted(set(keys) - {*FIRST, *LAST}), *ends]


def _ask_grpc(address: Address, unlisted: str) -> list[dict[str, Any]]:
    client = triton.InferenceServerClient(address.target, ssl=address.secure)
    try:
        try:
            index = client.get_model_repository_index(as_json=True, client_timeout=SECONDS).get("models", [])
            names = [model["name"] for model in index if model.get("state") == "READY"]
        except InferenceServerException as error:
            if RESTRICTED not in error.message():
                raise
            names = [unlisted]
        return [client.get_model_config(name, as_json=True, client_timeout=SECONDS)["config"] for name in _once(names)]
    except InferenceServerException as error:
        status, message = (error.status() or "").removeprefix("StatusCode."), error.message()
        if status == "DEADLINE_EXCEEDED" or (status == "UNAVAILABLE" and NO_CONNECTION.search(message)):
            raise connection_failed(address, message) from error
        if RESTRICTED in message:
            raise InvalidRequest(f"{address} does not show what it serves") from error
        raise triton_error(status, message) from error
    finally:
        client.close()


def _ask_http(address: Address, unlisted: str) -> list[dict[str, Any]]:
    try:
        index = _http(address, "repository/index", method="POST")
        names = [model["name"] for model in index if model.get("state") == "READY"]
    except InvalidRequest:  # kept back
        names = [unlisted]
    return [_http(address, f"models/{name}/config", method="GET") for name in _once(names)]


def _http(address: Address, path: str, method: str) -> Any:
    request = urllib.request.Request(f"{address.scheme}://{address.target}/v2/{path}", method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as the transports: never by a proxy
    try:
        with direct.open(request, timeout=SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.FORBIDDEN:
            raise InvalidRequest(f"{address} does not show what it serves") from error
        raise triton_error(HTTP_STATUS.get(str(error.code), "INTERNAL"), _reason(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise connection_failed(address, getattr(error, "reason", error)) from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"the server answered with HTTP status {error.code}"


def _once(names: Iterable[str]) -> list[str]:
    """A model is listed once for each of its versions."""
    return sorted(set(names))
