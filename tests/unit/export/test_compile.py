"""`florence2 compile` compiles what servers of real checkpoints load."""

from dataclasses import replace
from pathlib import Path

import pytest
from numba import typeof

from bench.decode import random_weights
from florence2.config import ModelConfig
from florence2.engine.cpu.kernels.step import decode
from florence2.engine.engine import Engine
from florence2.engine.weights import build_language_model, create_backend
from florence2_client import cli
from florence2_export import compile as compile_command
from florence2_export.language import language_tensors


@pytest.fixture
def types_of_steps(monkeypatch) -> list[tuple]:
    """The types of each step's arguments, which is not computed."""
    found: list[tuple] = []
    monkeypatch.setattr(
        "florence2.engine.cpu.backend.decode", lambda *arguments: found.append(tuple(map(typeof, arguments)))
    )
    return found


@pytest.mark.parametrize("precision", compile_command.PRECISIONS)
def test_the_tiny_model_has_the_types_of_a_larger_one(types_of_steps, precision):
    """numba compiles for types, so the code of the tiny model serves every checkpoint of the precision."""
    compile_command.load_step(precision)
    text = replace(compile_command.TINY.text, d_model=128, encoder_heads=2, decoder_heads=2, decoder_layers=3)
    config: ModelConfig = replace(compile_command.TINY, text=text)
    model = build_language_model(language_tensors(random_weights(config), precision), config, precision)
    Engine(create_backend(model, config, rows=3), config)
    tiny, larger = types_of_steps
    assert tiny == larger


def test_each_precision_is_compiled_and_its_place_is_printed(monkeypatch, capsys):
    loaded: list[str] = []
    monkeypatch.setattr(compile_command, "load_step", loaded.append)
    monkeypatch.setattr(decode._cache, "folder", Path("/kept"))
    assert cli.main(["compile", "--precision", "int8", "float32"]) == 0
    assert loaded == ["int8", "float32"]
    assert [line.split(" after ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "int8: in /kept", "float32: in /kept",
    ]  # fmt: skip
    assert cli.main(["compile"]) == 0
    assert loaded[2:] == ["int8"], "what `export --precision auto` needs"


def test_a_result_that_cannot_be_kept_is_an_error(monkeypatch, capsys):
    """An image would otherwise be built without it."""
    monkeypatch.setattr(compile_command, "load_step", lambda _precision: None)
    monkeypatch.setattr(decode._cache, "folder", None)
    assert cli.main(["compile"]) == 1
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in capsys.readouterr().err


def test_an_unknown_precision_is_a_mistake(capsys):
    """float16 is for GPUs, which compile nothing of this."""
    assert cli.main(["compile", "--precision", "float16"]) == 2
    assert "float16" in capsys.readouterr().err
