"""The commands and their help, completion, and the packages that some of them need."""

from __future__ import annotations

import json
import sys

import pytest

from florence2.server.options import ServingOptions
from florence2.tasks import TASKS
from florence2_client import cli


def test_no_command_prints_the_help(capsys):
    """The exit code is 0."""
    assert cli.main([]) == 0
    assert "florence2 batch photos/" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_is_printed(capsys, arguments):
    """The exit code is 0."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 0
    assert "usage: florence2" in capsys.readouterr().out


def test_tasks_lists_every_task(capsys):
    """Tasks have the names that `--task` takes."""
    names = [task.name for task in TASKS.values()]
    assert cli.main(["tasks", "--no-json"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names
    assert cli.main(["tasks"]) == 0
    assert [json.loads(line)["task"] for line in capsys.readouterr().out.splitlines()] == names


def test_serve_hands_over_to_the_server(monkeypatch, tmp_path):
    """`serve` passes its flags on and returns the server's exit code."""
    calls = []
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").touch()
    monkeypatch.setattr("florence2.server.foreground.serve", lambda options, front: calls.append(options) or 5)
    assert cli.main(["serve", "--repository", str(tmp_path), "--host", "0.0.0.0", "--http-port", "0"]) == 5
    assert calls == [ServingOptions(tmp_path, host="0.0.0.0", http_port=0)]


def test_export_without_its_packages_says_what_to_install(monkeypatch, capsys):
    """Only the client is installed by default."""
    for name in [name for name in sys.modules if name.startswith("florence2_export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(["export", "x"]) == 1
    assert "run: pip install 'florence2-triton[export]'" in capsys.readouterr().err


def test_the_page_without_gradio_says_what_to_install(monkeypatch, capsys):
    """Name the extra that is missing after a plain `pip install .`."""
    for name in [name for name in sys.modules if name.startswith("florence2_client.page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["ui"]) == 1
    assert "run: pip install 'florence2-triton[ui]'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_is_printed(capsys, shell):
    """Each script has all commands."""
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as end:
        cli.main(["--print-completion", shell])
    assert end.value.code == 0
    script = capsys.readouterr().out
    assert all(name in script for name in cli.COMMANDS)


def test_missing_completion_package_is_named(monkeypatch, capsys):
    """The message says how to install it."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 1
    assert "pip install shtab" in capsys.readouterr().err
