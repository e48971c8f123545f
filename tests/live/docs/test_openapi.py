"""docs/openapi.yaml says what the server does: its names and types are the contract's, and its example is answered."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from florence2.tasks import TASKS
from tests.unit.test_model_repository import CONTRACT_INPUTS, CONTRACT_OUTPUTS

yaml = pytest.importorskip("yaml")
API = yaml.safe_load((Path(__file__).parents[3] / "docs" / "openapi.yaml").read_text(encoding="utf-8"))
SCHEMAS = API["components"]["schemas"]
ASK = API["paths"]["/v2/models/{model}/generate"]["post"]
TYPES = {
    "TYPE_STRING": "string",
    "TYPE_INT32": "integer",
    "TYPE_INT64": "integer",
    "TYPE_FP32": "number",
    "TYPE_BOOL": "boolean",
}
PYTHON = {"string": str, "integer": int, "number": (int, float), "array": list}


@pytest.mark.parametrize(("name", "contract"), [("Request", CONTRACT_INPUTS), ("Response", CONTRACT_OUTPUTS)])
def test_fields_are_the_contracts(name, contract):
    """The document has every tensor with its type, and requires those that are not optional."""
    fields = SCHEMAS[name]["properties"]
    assert list(fields) == list(contract)
    for tensor, (kind, dims, _) in contract.items():
        field = fields[tensor] if dims == [1] else fields[tensor]["items"]
        assert field["type"] == TYPES[kind]
    if name == "Request":
        assert SCHEMAS[name]["required"] == [tensor for tensor, (*_, optional) in contract.items() if not optional]


def test_every_task_token_is_an_example():
    """They are examples of TASK."""
    assert SCHEMAS["Request"]["properties"]["TASK"]["examples"] == list(TASKS)


def ask(server, question):
    """Return the status and JSON of a response."""
    model = ASK["parameters"][0]["schema"]["default"]
    url = f"{server.http_url}/v2/models/{model}/generate"
    request = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_example_is_answered_as_described(server):
    """The image in the document gets an answer with the document's fields; a mistake gets its error."""
    example = ASK["requestBody"]["content"]["application/json"]["example"]
    status, answer = ask(server, example)
    assert status == 200
    for name, field in SCHEMAS["Response"]["properties"].items():
        assert isinstance(answer[name], PYTHON[field["type"]])
    assert answer["FINISH_REASON"] in SCHEMAS["Response"]["properties"]["FINISH_REASON"]["enum"]
    status, answer = ask(server, example | {"IMAGE": "AAAA"})
    assert str(status) in ASK["responses"]
    assert isinstance(answer["error"], str)
