"""What a server tells about its models: what is read of it, and what `florence2 info` prints."""

from __future__ import annotations

import json

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from florence2.errors import InternalError, InvalidRequest
from florence2_client import cli
from florence2_client.cli import info
from florence2_client.description import description_of, identity_of, image_side
from florence2_client.transports import parse_url


def told(**parameters):
    return {"platform": "ensemble", "parameters": {name: {"string_value": text} for name, text in parameters.items()}}


@pytest.mark.parametrize(
    "config",
    [None, [], "x", {}, {"platform": "ensemble"}, {"platform": "ensemble", "parameters": ["x"]},
     {"platform": "ensemble", "parameters": {"a": "x", "b": {}, "c": {"string_value": 5}}},
     {"platform": "other", "parameters": {"a": {"string_value": "x"}}}],
)  # fmt: skip
def test_what_no_export_wrote_is_no_description(config):
    assert description_of(config) == {}


def test_a_model_is_its_weights_and_settings():
    """Not its name, nor when and by what it was exported."""
    description = description_of(told(checkpoint="a", weights_sha256="3f", exported="today", image_size="64x32"))
    assert identity_of(description) == {"weights_sha256": "3f", "image_size": "64x32"}
    assert image_side(description) == 32 and image_side({}) is None


@pytest.fixture
def repository(tmp_path):
    """A repository of two ensembles, as export writes them."""
    for name in ("a_ensemble", "b_ensemble"):
        config = ModelConfig(name=name, platform="ensemble")
        config.parameters["checkpoint"].string_value = f"of {name}"
        config.parameters["revision"].string_value = ""
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(text_format.MessageToString(config))
    return str(tmp_path)


def test_info_is_about_the_model_that_is_named(repository, capsys):
    """By default, about all."""
    assert cli.main(["info", "--repository", repository]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert cli.main(["info", "--repository", repository, "--model", "b_ensemble"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "b_ensemble", "checkpoint": "of b_ensemble", "revision": ""}
    assert cli.main(["info", "--repository", repository, "--model", "c"]) == 2
    error = capsys.readouterr().err
    assert error == "florence2: there is no model 'c'; there is a_ensemble, b_ensemble\n"


@pytest.mark.parametrize("index", [{"ok": True}, ["x"], [{"state": "READY"}], 5, None])
def test_a_server_that_is_not_triton_is_named(monkeypatch, index):
    """Whatever JSON it answers with."""
    monkeypatch.setattr(info, "_read_json", lambda *_: index)
    with pytest.raises(InternalError, match="is not one of Triton's"):
        info.ask_server(parse_url("http://127.0.0.1:1"))


def test_a_server_without_models_is_named(monkeypatch):
    monkeypatch.setattr(info, "_read_json", lambda *_: [])
    with pytest.raises(InvalidRequest, match="has no model"):
        info.ask_server(parse_url("http://127.0.0.1:1"))
