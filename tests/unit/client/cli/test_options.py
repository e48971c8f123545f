"""Flags and environment variables reach the server."""

from __future__ import annotations

import pytest

from florence2_client import cli


def test_options_reach_the_server(server, image):
    """Every flag arrives as its tensor, a text that begins with a minus sign too; flags left out are not sent."""
    flags = "--max-new-tokens 5 --num-beams 2 --no-repeat-ngram-size 0 --length-penalty 0.5 --no-early-stopping"
    flags += f" --suppress-repeated-bos --temperature 0.5 --top-k 0 --top-p 0.25 --seed {2**63 - 1}"
    where = "--url http://box:1 --model mine_ensemble --timeout 2.5"
    assert (
        cli.main(
            ["run", image, "--task", "Open-Vocabulary Detection", "--text", "-1,2", *flags.split(), *where.split()]
        )
        == 0
    )
    model, tensors, timeout = server.asked[0]
    del tensors["IMAGE"]
    assert server.urls == ["http://box:1"]
    assert (model, timeout) == ("mine_ensemble", pytest.approx(2.5, abs=0.1))
    assert tensors == {
        "TASK": b"<OPEN_VOCABULARY_DETECTION>",
        "TEXT": b"-1,2",
        "MAX_NEW_TOKENS": 5,
        "NUM_BEAMS": 2,
        "NO_REPEAT_NGRAM_SIZE": 0,
        "LENGTH_PENALTY": 0.5,
        "EARLY_STOPPING": False,
        "SUPPRESS_REPEATED_BOS": True,
        "TEMPERATURE": 0.5,
        "TOP_K": 0,
        "TOP_P": 0.25,
        "SEED": 2**63 - 1,
    }


def test_the_environment_names_the_server(server, image, monkeypatch):
    """`--url` takes precedence, and an empty variable counts as none."""
    monkeypatch.setenv("FLORENCE2_URL", "http://box:1")
    cli.main(["run", image, "--task", "od"])
    cli.main(["run", image, "--task", "od", "--url", "http://other:2"])
    monkeypatch.setenv("FLORENCE2_URL", "")
    cli.main(["run", image, "--task", "od"])
    assert server.urls == ["http://box:1", "http://other:2", "grpc://127.0.0.1:8001"]


def test_connection_arguments_reach_the_client(server, image, capsys, tmp_path):
    """Headers go with the request; an authority is for TLS only."""
    assert cli.main(["run", image, "--task", "od", "--header", "X-Key: a:b", "--header", "Y:2"]) == 0
    assert server.addresses[0].headers == {"x-key": "a:b", "y": "2"}
    assert cli.main(["run", image, "--task", "od", "--header", "nonsense"]) == 2
    assert cli.main(["run", image, "--task", "od", "--ca", str(tmp_path / "no.pem"), "--url", "grpcs://x"]) == 2
    assert "TLS files cannot be used" in capsys.readouterr().err
