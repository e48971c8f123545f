"""Every error of a command is one sentence and an exit code."""

from __future__ import annotations

import pytest

from florence2.contract import OPTIONS
from florence2.errors import ConnectionFailed, InternalError, InvalidOption, InvalidRequest
from florence2_client import cli
from florence2_client.cli import console


@pytest.mark.parametrize(
    ("failure", "code"),
    [(InvalidRequest("too bad"), 2), (ConnectionFailed("too bad"), 3), (InternalError("too bad"), 1)],
)
def test_error_is_one_sentence_and_its_exit_code(server, image, capsys, failure, code):
    """Errors go to standard error as `florence2: sentence`, and nothing to standard output."""
    server.failure = failure
    assert cli.main(["run", image, "--task", "od", "--json"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "florence2: too bad\n")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.keyword)
def test_messages_name_the_flag_of_an_option(server, image, capsys, option):
    """The server knows tensors, not flags."""
    server.failure = InvalidOption(f"{option.name} must be something else")
    assert cli.main(["run", image, "--task", "od"]) == 2
    flag = "--" + option.keyword.replace("_", "-")
    assert capsys.readouterr().err == f"florence2: {flag} must be something else\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "no-such.png", "--task", "od"], "there is no file no-such.png"),
        (["run", "x.png"], "arguments are required: --task"),
        (["run", "x.png", "--task", "captoin"], "did you mean caption?"),
        (["run", "x.png", "--task", "region-to-categry"], "did you mean region_to_category"),
        (["run", "x.png", "--task", "odd"], "did you mean od?"),
        (["run", "x.png", "--task", "zzz"], "`florence2 tasks` lists them"),
        (["run", "x.png", "--task", ""], "there is no task ''"),
        (
            ["run", "x.png", "--task", "od", "--num-beams", "many"],
            "florence2: --num-beams must be a whole number, not 'many'",
        ),
        (["run", "x.png", "--task", "od", "--top-p", "many"], "florence2: --top-p must be a number, not 'many'"),
        (
            ["run", "x.png", "--task", "od", "--nun-beams", "3"],
            "there is no option --nun-beams; did you mean --num-beams?",
        ),
        (
            ["run", "x.png", "--task", "od", "--nun-beams=3"],
            "there is no option --nun-beams; did you mean --num-beams?",
        ),
        (["run", "x.png", "--tsak", "od"], "there is no option --tsak; did you mean --task?"),
        (["run", "x.png", "--task", "od", "--draw"], "florence2: --draw needs a value; see `florence2 run --help`"),
        (["run", "x.png", "--task"], "florence2: --task needs a value"),
        (["run", "x.png", "--task", "od", "--stream=3"], "florence2: --stream takes no value, not even '3'"),
        (["run", "x.png", "--task", "od", "--ca", "no.pem", "--url", "grpcs://x"], "there is no file no.pem"),
        (
            ["batch", "x.png", "--tasks", "od", "--out", "-", "--retry-for", "x"],
            "florence2: --retry-for must be a number",
        ),
        (["export", "x", "--target", "tpu"], "florence2: --target must be one of "),
        (["compile", "--precision"], "florence2: --precision needs a value"),
        (["--url", "x", "run", "x.png"], "the command comes first, not --url"),
        (["-"], "the command comes first, not -;"),
        (["--print-completion", "fish"], "florence2: --print-completion must be one of "),
        (["calibrate", "x", "--tasks", "odd"], "there is no task 'odd'; did you mean od?"),
        (["calibrate", "x", "--tasks", "caption"], "caption does not answer with boxes"),
        (["gateway", "--cors-origin", "example.com"], "--cors-origin takes an origin such as https://"),
        (["gateway", "--cors-origin", "https://example.com/"], "--cors-origin takes an origin such as https://"),
        (["gateway", "--allow-images-from", "https://example.com"], "--allow-images-from takes a host such as"),
        (["gateway", "--api-key-file", "no.txt"], "--api-key-file no.txt cannot be read: No such file or directory\n"),
        (["mcp", "--allow-files-from", "no-such"], "--allow-files-from no-such is not a directory"),
        (["ui", "--host", "no-such-host.invalid"], "the page cannot listen on no-such-host.invalid, port 7860: "),
        (["run", "x.png", "--task", "od", "--url", "ftp://x"], "is not the URL of a server"),
        (["fly"], "there is no command 'fly'; `florence2 --help` lists them"),
        (["runn", "x.png"], "there is no command 'runn'; did you mean `florence2 run`?"),
        (["tasks", "--fast"], "unrecognized arguments: --fast; see `florence2 tasks --help`"),
        (["run", "x.png", "--task", "od", "--num-beams", "-1"], "--num-beams must be at least 1"),
        (
            ["run", "x.png", "--task", "od", "--max-new-tokens", "99999999999"],
            "--max-new-tokens must be at least 1 and",
        ),
        (["run", "x.png", "--task", "od", "--length-penalty", "nan"], "--length-penalty must be at least -2, not nan"),
        (
            ["run", "x.png", "--task", "od", "--temperature", "-1"],
            "florence2: --temperature must be at least 0, not -1",
        ),
        (
            ["run", "x.png", "--task", "od", "--seed", str(2**63)],
            f"florence2: --seed must be at least 0 and at most {2**63 - 1:,}, not {2**63}",
        ),
        (["run", "x.png", "--task", "od", "--timeout", "0"], "--timeout must be above 0"),
        (["run", "x.png", "--task", "od", "--max-side", "0"], "--max-side must be at least 1"),
        (["run", "x.png", "--task", "od", "--tiles", "few"], "tiles must be 'auto', the size of a tile in pixels"),
        (["run", "x.png", "--task", "caption", "--tiles", "auto"], "tiles are for od, dense_region_caption"),
        (["health", "--timeout", "-1"], "--timeout must be above 0"),
        (["info", "--timeout", "inf"], "--timeout must be above 0"),
        (["bench", "x.png", "--task", "od", "--seconds", "-1"], "--seconds must be above 0"),
        (["bench", "x.png", "--task", "od", "--concurrency", "1,1000000"], "whole numbers from 1 to 4096"),
        (["serve", "--cache-answers", "-1"], "--cache-answers must be at least 0"),
        (["serve", "--cache-mib", "-1"], "--cache-mib must be at least 0"),
        (["serve", "--http-port", "70000"], "--http-port must be at least 0 and at most 65,535, not 70000"),
        (["serve", "--connection-age", "0"], "--connection-age must be at least 1"),
        (["serve", "--drain-seconds", "-5"], "--drain-seconds must be at least 0"),
        (["ui", "--port", "-1"], "--port must be at least 0"),
    ],
)
def test_mistake_on_the_command_line_is_one_sentence(capsys, arguments, sentence):
    """Mistakes are named on one line, with the closest right spelling where there is one; exit code 2."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("florence2: ")
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize("arguments", [["--task", "region_to_category"], ["--task", "od", "--text", "a dog"]])
def test_a_missing_or_superfluous_text_is_found_before_anything_is_sent(image, capsys, arguments):
    """There is no server, so a request would have failed with another error."""
    assert cli.main(["run", image, "--url", "grpc://127.0.0.1:1", *arguments]) == 2
    assert "takes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sentence", "pasteable"),
    [
        ("no server; start it with `florence2 serve`", "`.venv/bin/florence2 serve --repository build/demo/"),
        ("start it with `florence2 serve --stream`", "serve --repository build/demo/model_repository --stream`"),
        ("`florence2 tasks` lists them", "`.venv/bin/florence2 tasks`"),
        ("there is none; create it with: florence2 export NAME", "with: .venv/bin/florence2 export NAME"),
    ],
)
def test_commands_in_messages_can_be_pasted(monkeypatch, tmp_path, capsys, sentence, pasteable):
    """Without an active environment in a clone after `make demo`; where nothing differs, the message stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/opt/bin/florence2"])
    monkeypatch.setattr("shutil.which", lambda name: f"/opt/bin/{name}")
    console.complain(sentence)
    assert capsys.readouterr().err == f"florence2: {sentence}\n"
    (tmp_path / "build" / "demo" / "model_repository").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", [".venv/bin/florence2"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    console.complain(sentence)
    assert pasteable in capsys.readouterr().err
