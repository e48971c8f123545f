"""`florence2 info`: the record of an export, from the files and from the server that serves them."""

import json
import re
from pathlib import Path

import pytest

from florence2.errors import CheckpointError, InvalidRequest
from florence2_client import Client, cli
from florence2_client.cli import info
from florence2_client.transports import parse_url
from florence2_export.weight_files import content_hash

ROOT = Path(__file__).parents[3]


def ask(capsys, *arguments: str) -> list[dict]:
    assert cli.main(["info", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_repository_tells_what_it_was_made_of(repository, checkpoint, capsys):
    """Checkpoint, the hash of its weights, precision, time and versions; JSON in a pipe."""
    (record,) = ask(capsys, "--repository", str(repository))
    assert (record["model"], record["checkpoint"]) == ("florence2_ensemble", "checkpoint")
    assert record["weights_sha256"] == content_hash([checkpoint / "model.safetensors"])
    assert record["layout"] == "native" and any(key.endswith("precision") for key in record)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["exported"])
    assert {"florence2", "torch", "transformers", "onnx"} <= record.keys()
    assert list(record)[:2] == ["model", "checkpoint"], "what users look for first comes first"


def test_a_running_server_tells_the_same_over_both_protocols(server, repository, capsys):
    """Triton shows a model's configuration to every client that may send requests."""
    expected = ask(capsys, "--repository", str(repository))
    assert ask(capsys, "--url", server.grpc_url) == expected
    assert ask(capsys, "--url", server.http_url) == expected
    for url in (server.grpc_url, server.http_url):
        with Client(url) as client:  # which tiles and batches need
            assert {"model": client.model, **client._description()} == expected[0]


def test_a_terminal_gets_a_line_for_each_fact(repository, capsys, monkeypatch):
    """They are aligned under the model's name."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert cli.main(["info", "--repository", str(repository)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "florence2_ensemble"
    assert lines[1].split() == ["checkpoint", "checkpoint"] and lines[2].startswith("  weights sha256  ")


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--repository", "nowhere"], "there is no directory nowhere", 1),
        (["--repository", str(ROOT / "model_repository")], "holds no model that `florence2 export` made", 1),
        (["--url", "grpc://127.0.0.1:9"], "connection refused", 3),
        (["--url", "http://127.0.0.1:9"], "connection refused", 3),
        (["--url", "ftp://somewhere"], "is not the URL of a server", 2),
        (["--url", "grpc://a", "--repository", "b"], "not allowed with", 2),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, code, capsys):
    """A failure is one sentence and an exit code, for every command."""
    assert cli.main(["info", *arguments]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_damaged_config_is_one_sentence(tmp_path):
    """And names the file."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").write_text("name: {")
    with pytest.raises(CheckpointError, match=r"config\.pbtxt cannot be read"):
        info.read_repository(tmp_path)


def test_a_server_of_other_models_has_nothing_to_tell(monkeypatch):
    """Someone else's ensemble is not taken for ours."""
    other = {"name": "other", "platform": "ensemble", "ensemble_scheduling": {}}
    monkeypatch.setattr(info, "_configs_over_grpc", lambda *_: [other, {"name": "decoder", "backend": "python"}])
    with pytest.raises(InvalidRequest, match="has no model"):
        info.ask_server(parse_url("grpc://127.0.0.1:1"))
