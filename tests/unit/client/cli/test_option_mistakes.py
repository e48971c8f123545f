"""Options of the command line that are empty, given twice, out of range, or without effect: one sentence each."""

from __future__ import annotations

import argparse
import json

import pytest
from PIL import Image

from florence2.errors import InvalidRequest
from florence2_client import cli
from florence2_client.cli import gateway
from florence2_client.cli.arguments import number

[COMMANDS] = [
    action.choices for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
]  # name -> parser
WITH_VALUES = [
    (name, flag)
    for name, parser in COMMANDS.items()
    for action in parser._actions
    for flag in action.option_strings
    if flag.startswith("--") and action.nargs != 0 and flag != "--text"
]
MCP_OVER_HTTP = ("--host x", "--port 1", "--api-key k", "--api-key-file f", "--requests-per-minute 1",
                 "--concurrency 1", "--max-body-mib 1")  # fmt: skip


@pytest.fixture
def image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "gray").save("image.png")
    return "image.png"


def sentence(capsys, *arguments):
    """Return what a command says that must fail."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("florence2: ") and error.count("\n") == 1
    return error


# ---- empty values


@pytest.mark.parametrize(("command", "flag"), WITH_VALUES)
@pytest.mark.parametrize("form", ["{} ", "{}="])
def test_an_empty_value_is_refused_by_every_option(capsys, command, flag, form):
    """It is not taken for the current folder, every address, a default or nothing."""
    arguments = form.format(flag).split(" ")
    error = sentence(capsys, command, *arguments)
    name = next(action.option_strings[0] for action in COMMANDS[command]._actions if flag in action.option_strings)
    assert name in error or "''" in error or "names no task" in error


@pytest.mark.parametrize("text", ["", " "])
def test_a_blank_text_counts_as_absent(capsys, server, image, text):
    """The server reads it so: a caption needs none, and a phrase is missed."""
    assert cli.main(["run", image, "--task", "caption", "--text", text]) == 0
    capsys.readouterr()
    error = sentence(capsys, "run", image, "--task", "open_vocabulary_detection", "--text", text)
    assert "takes a phrase or a caption as its text, but none was sent" in error


@pytest.mark.parametrize("command", ["run", "batch", "bench", "calibrate", "export"])
def test_an_empty_name_of_a_file_is_refused(capsys, command):
    assert "needs a value, not an empty text" in sentence(capsys, command, "")


@pytest.mark.parametrize("tasks", [",", " , ", ",,"])
def test_commas_are_no_prompt(capsys, image, tasks):
    assert "names no task" in sentence(capsys, "run", image, "--task", tasks)


@pytest.mark.parametrize("url", ["http://", " ", "http://:8000", "grpc://x:0"])
def test_the_url_of_the_environment_is_checked_too(capsys, image, monkeypatch, url):
    monkeypatch.setenv("FLORENCE2_URL", url)
    assert "is not the URL of a server" in sentence(capsys, "run", image, "--task", "od")


@pytest.mark.parametrize("keys", [",", " ", " , "])
def test_keys_that_are_none_do_not_open_the_gateway(monkeypatch, tmp_path, keys):
    """Nor does an unset variable in `--api-key "$KEY"`."""
    options = argparse.Namespace(api_key=[], api_key_file=[])
    monkeypatch.setenv("FLORENCE2_API_KEYS", keys)
    with pytest.raises(InvalidRequest, match="FLORENCE2_API_KEYS holds no key"):
        gateway.keys_of(options)
    monkeypatch.setenv("FLORENCE2_API_KEYS", "")
    assert gateway.keys_of(options) == ()
    with pytest.raises(InvalidRequest, match="--api-key holds no key"):
        gateway.keys_of(argparse.Namespace(api_key=[" "], api_key_file=[]))
    (tmp_path / "keys").write_text(keys.replace(",", "\n"))
    with pytest.raises(InvalidRequest, match="keys holds no key"):
        gateway.keys_of(argparse.Namespace(api_key=["a"], api_key_file=[tmp_path / "keys"]))


# ---- options without effect


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *((f"mcp {given}", f"{given.split()[0]} has no effect without --http") for given in MCP_OVER_HTTP),
        ("gateway --repository x", "--repository has no effect without --serve"),
        ("gateway --serve --url grpc://x", "--url has no effect with --serve"),
        ("gateway --serve --header a:b", "--header has no effect with --serve"),
        ("batch x --tasks od --out y --rle", "--rle has no effect without --coco"),
        ("batch x --tasks od --out y --all-objects", "--all-objects has no effect without --coco or --yolo"),
        ("batch x --tasks od --out y --min-confidence 0.5", "--min-confidence has no effect without --coco or --yolo"),
        ("batch x --tasks od --out - --retry-errors", "--retry-errors has no effect with --out -"),
        ("info --repository x --timeout 5", "--timeout has no effect with --repository"),
        ("info --repository x --header a:b", "--header has no effect with --repository"),
        ("info --repository x --ca y", "--ca has no effect with --repository"),
        ("calibrate x --header a:b", "--header has no effect without --url"),
        ("calibrate x --reset", "LABELED_DIR has no effect with --reset"),
        ("calibrate --reset --tasks od", "--tasks has no effect with --reset"),
        ("health --metrics grpc://x", "metrics have an HTTP URL"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(capsys, arguments, words):
    """Also if its value is the default."""
    assert words in sentence(capsys, *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ("mcp --http --port=8090 --api-key x", {"--http", "--port", "--api-key"}),
        ("mcp", set()),
        ("run x.png --tasks od --no-json --min-conf 0", {"IMAGE", "--task", "--json", "--min-confidence"}),
    ],
)
def test_what_was_given_is_known_by_its_first_name(arguments, given):
    """Even if the value is the default, and under another name, negated, or abbreviated."""
    parser = cli.parser()
    parser.parse_args(arguments.split())
    assert parser.given == given


# ---- options that are given twice


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ("run x.png --task od --draw a.png --draw b.png", "--draw"),
        ("run x.png --task od --masks a --masks b", "--masks"),
        ("batch x --tasks od --out y --coco a --coco b", "--coco"),
        ("batch x --tasks od --out y --yolo a --yolo b", "--yolo"),
        ("batch x --tasks od --out y --csv a --csv b", "--csv"),
        ("batch x --tasks od --out y --draw a --draw b", "--draw"),
        ("bench x.png --task od --task ocr", "--task"),
        ("bench x.png --task find --text a --text b", "--text"),
        ("gateway --label-studio http://a --label-studio http://b", "--label-studio"),
        ("calibrate x --annotations a --annotations b", "--annotations"),
    ],
)
def test_a_second_value_is_refused_where_both_were_meant(capsys, image, arguments, flag):
    assert f"{flag} is given twice" in sentence(capsys, *arguments.split())


def test_lists_take_all_their_values(tmp_path):
    batch = COMMANDS["batch"].parse_args(["x", "--out", "y", "--tasks", "od", "--tasks", "caption,ocr"])
    assert [token for token, _ in batch.tasks] == ["<OD>", "<CAPTION>", "<OCR>"]
    assert COMMANDS["calibrate"].parse_args(["--tasks", "od", "--tasks", "find"]).tasks == [
        "<OD>", "<OPEN_VOCABULARY_DETECTION>",
    ]  # fmt: skip
    assert COMMANDS["bench"].parse_args(
        ["x", "--task", "od", "--concurrency", "1,2", "--concurrency", "4"]
    ).concurrency == [1, 2, 4]
    for name in "ab":
        (tmp_path / name).write_text(f"\ufeffkey-{name}\n", encoding="utf-8")
    options = COMMANDS["mcp"].parse_args(["--api-key-file", str(tmp_path / "a"), "--api-key-file", str(tmp_path / "b")])
    assert gateway.keys_of(options) == ("key-a", "key-b")


def test_a_setting_can_be_overridden(server, image):
    """By what follows the alias of a command, for example."""
    assert cli.main(["run", image, "--task", "od", "--timeout", "1", "--timeout", "50", "--num-beams", "2"]) == 0
    assert server.asked[0][2] == pytest.approx(50, abs=1)


# ---- numbers out of range


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("gateway --requests-per-minute 1e-320", "--requests-per-minute must be at least 0.001"),
        ("gateway --requests-per-minute nan", "--requests-per-minute must be at least 0.001"),
        ("gateway --requests-per-minute inf", "--requests-per-minute must be at least 0.001"),
        ("gateway --drain-seconds 1" + "0" * 400, "--drain-seconds must be at least 0 and at most 86,400"),
        ("gateway --max-body-mib -1", "--max-body-mib must be at least 1"),
        ("export x --max-prompt-tokens few", "--max-prompt-tokens must be a whole number, not 'few'"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(capsys, arguments, words):
    assert words in sentence(capsys, *arguments.split())


def test_a_number_may_be_larger_than_any_float():
    assert number(int, 1)("1" + "0" * 400) == 10**400
    with pytest.raises(argparse.ArgumentTypeError):
        number(float, 1)("1" + "0" * 400)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_option_takes_nan(capsys, command):
    """Nor infinity, wherever a number is expected."""
    for action in COMMANDS[command]._actions:
        converter = action.type
        for text in ("nan", "inf", "-inf") if getattr(converter, "__name__", "") == "convert" else ():
            with pytest.raises(argparse.ArgumentTypeError):
                converter(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("gateway --host a..b", "cannot listen on a..b: this is no name of a host"),
        ("ui --host a..b", "cannot listen on a..b: this is no name of a host"),
        ("gateway --serve --label-studio ftp://x", "the address of Label Studio must begin with http:// or https://"),
        ("run x.png --task od --header Content-Length:5", "the header Content-Length is set for each request"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(capsys, image, arguments, words):
    """Before a server is started."""
    assert words in sentence(capsys, *arguments.split())


# ---- what is not an image


def test_a_document_on_the_web_is_answered_page_by_page(server, image, monkeypatch, capsys):
    pytest.importorskip("pypdfium2")
    Image.open(image).save("scan.pdf", save_all=True, append_images=[Image.open(image)])
    with open("scan.pdf", "rb") as file:
        content = file.read()
    monkeypatch.setattr("florence2_client.images.download", lambda url: content)
    assert cli.main(["run", "https://example.com/scan.pdf", "--task", "od"]) == 0
    assert [json.loads(line)["page"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
