"""The `florence2` command against a fake transport, and as a process of its own where pipes matter."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.contract import OPTIONS
from florence2.errors import ConnectionFailed, InternalError, InvalidOption, InvalidRequest
from florence2.server.options import ServingOptions
from florence2.tasks import TASKS
from florence2_client import cli
from florence2_client.cli import console

ANSWERS = {
    "<OD>": {"bboxes": [[1.2, 2.0, 33.7, 24.0], [5, 6, 7, 8]], "labels": ["dog", "中文"], "confidences": [0.987, 0.5]},
    "<CAPTION>": "a café",
    "<OCR_WITH_REGION>": {"quad_boxes": [[1, 2, 30, 2, 30, 9, 1, 9]], "labels": ["EXIT"], "confidences": [0.25]},
    "<REGION_TO_SEGMENTATION>": {"polygons": [[[1, 2, 30, 2, 30, 9], [4, 4, 5, 5]]], "labels": [""]},
    "<OPEN_VOCABULARY_DETECTION>": {
        "bboxes": [[1, 2, 3, 4]],
        "bboxes_labels": ["cat"],
        "polygons": [[[1, 2, 30, 2, 30, 9]]],
        "polygons_labels": ["hat"],
    },
    "<REGION_PROPOSAL>": {"bboxes": [], "labels": []},
    "<DocVQA>What?": "42",
    "<REGION_TO_CATEGORY>": "dog<loc_0><loc_100><loc_500><loc_999>",
}


class FakeServer:
    """Stands in for the transport: answers by task, or raises what it was told to."""

    def __init__(self):
        self.failure = None
        self.finish_reason = b"stop"
        self.urls, self.addresses, self.asked = [], [], []

    def open(self, url):
        self.urls.append(str(url))
        self.addresses.append(url)
        return self

    def infer(self, model, tensors, timeout):
        self.asked.append((model, {name: tensor[0] for name, tensor in tensors.items()}, timeout))
        if self.failure:
            raise self.failure
        task = tensors["TASK"][0].decode()
        return {
            "RESULT": np.array([json.dumps({task: ANSWERS[task]}).encode()], dtype=object),
            "GENERATED_TEXT": np.array([b"text"], dtype=object),
            "FINISH_REASON": np.array([self.finish_reason], dtype=object),
            "NUM_TOKENS": np.array([7], dtype=np.int32),
            "SEQUENCE_SCORE": np.array([-0.25], dtype=np.float32),
            "IMAGE_SIZE": np.array([40, 30], dtype=np.int32),
        }

    def close(self):
        pass


@pytest.fixture
def server(monkeypatch):
    fake = FakeServer()
    monkeypatch.setattr("florence2_client.client.open_transport", fake.open)
    return fake


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 30), "gray").save(path)
    return str(path)


def test_boxes_are_an_aligned_table_with_a_summary(server, image, capsys):
    """Labels, confidences and rounded boxes stand in columns, also behind wide characters; the last line sums up."""
    assert cli.main(["run", image, "--task", "od", "--no-json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "label  confidence  box (x1,y1 x2,y2)",
        "dog    0.99        1,2 34,24",
        "中文   0.50        5,6 7,8",
        "",
    ]
    assert lines[4].startswith("7 tokens, stop, image 40x30, ")
    assert lines[4].endswith(" ms")


def test_unsure_objects_can_be_left_out(server, image, capsys):
    """From text and from JSON; text answers stay. A minimum is a probability."""
    assert cli.main(["run", image, "--task", "od", "--no-json", "--min-confidence", "0.6"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["label", "dog"]
    assert cli.main(["run", image, "--task", "od,caption", "--min-confidence", "0.99"]) == 0
    found, caption = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["answer"]["labels"] == [] and caption["answer"] == "a café"
    assert cli.main(["run", image, "--task", "region_proposal", "--min-confidence", "0.5"]) == 2
    assert "no confidences" in capsys.readouterr().err
    assert cli.main(["run", image, "--task", "od", "--min-confidence", "50"]) == 2
    assert "--min-confidence must be at least 0 and at most 1, not 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("<CAPTION>", ["a café"]),
        (
            "<OCR_WITH_REGION>",
            ["label  confidence  corners (x1,y1 x2,y2 x3,y3 x4,y4)", "EXIT   0.25        1,2 30,2 30,9 1,9"],
        ),
        (
            "<REGION_TO_SEGMENTATION>",
            ["label  confidence  points  extent (x1,y1 x2,y2)", "-      -           5       1,2 30,9"],
        ),
        (
            "<OPEN_VOCABULARY_DETECTION>",
            [
                "label  confidence  box (x1,y1 x2,y2)",
                "cat    -           1,2 3,4",
                "label  confidence  points             extent (x1,y1 x2,y2)",
                "hat    -           3                  1,2 30,9",
            ],
        ),
        ("<REGION_PROPOSAL>", ["(nothing found)"]),
        ("<DocVQA>What?", ["42"]),
        ("<REGION_TO_CATEGORY>", ["dog [0,3 20,30]"]),
    ],
)
def test_every_kind_of_answer_is_readable(server, image, capsys, task, expected):
    """Texts are printed as they are, geometry as a table, nothing as a remark."""
    text = {
        "<REGION_TO_SEGMENTATION>": "1,2,3,4",
        "<REGION_TO_CATEGORY>": "1,2,3,4",
        "<OPEN_VOCABULARY_DETECTION>": "cat",
    }
    given = ["--text", text[task]] if task in text else []
    assert cli.main(["run", image, "--task", task, "--no-json", *given]) == 0
    assert capsys.readouterr().out.splitlines()[:-2] == expected


@pytest.mark.parametrize("arguments", [["--task", "region_to_category"], ["--task", "od", "--text", "a dog"]])
def test_a_missing_or_superfluous_text_is_found_before_anything_is_sent(image, capsys, arguments):
    """Without a server the user would hear of that first."""
    assert cli.main(["run", image, "--url", "grpc://127.0.0.1:1", *arguments]) == 2
    assert "takes" in capsys.readouterr().err


def test_cut_off_answer_is_marked(server, image, capsys):
    """The summary says so when the token limit ended the answer."""
    server.finish_reason = b"length"
    cli.main(["run", image, "--task", "od", "--no-json"])
    assert "length (cut off)" in capsys.readouterr().out


def test_json_is_one_object(server, image, capsys):
    """In a pipe exactly one JSON object is printed and nothing else."""
    assert cli.main(["run", image, "--task", "od"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out)["answer"] == ANSWERS["<OD>"]


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


def test_draw_writes_the_image(server, image, tmp_path):
    """`--draw` leaves an image file with more on it than the plain gray of the original."""
    drawn = tmp_path / "out.jpg"
    assert cli.main(["run", image, "--task", "od", "--draw", str(drawn)]) == 0
    assert len(Image.open(drawn).convert("RGB").getcolors(1 << 24)) > 1


def test_warning_is_one_sentence(server, image, tmp_path, capsys, monkeypatch):
    """A label in letters that no font has is told of without a line of code."""
    monkeypatch.setitem(ANSWERS, "<CAPTION>", "\U0010fffd")
    assert cli.main(["run", image, "--task", "caption", "--draw", str(tmp_path / "out.png")]) == 0
    error = capsys.readouterr().err
    assert error.startswith("florence2: no font here has") and error.count("\n") == 1


def test_file_in_place_of_a_folder_is_named_as_one(server, image, tmp_path, capsys):
    """The system would only say that the file exists."""
    (tmp_path / "masks").write_text("")
    assert cli.main(["run", image, "--task", "od", "--masks", str(tmp_path / "masks")]) == 2
    assert capsys.readouterr().err.endswith("masks cannot be written: it is a file, not a directory\n")
    assert server.asked == []


@pytest.mark.parametrize("name", ["out.txt", "out", "no/such/dir/out.png", "out.pdf.unknown"])
def test_undrawable_file_is_refused_before_the_request(server, image, tmp_path, capsys, name):
    """A name that cannot be written is found out before the server has worked for nothing."""
    assert cli.main(["run", image, "--task", "od", "--draw", str(tmp_path / name)]) == 2
    assert server.asked == []


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


def test_ctrl_c_exits_with_130(server, image, capsys):
    """Ctrl-C is an end, not an error to explain."""
    server.failure = KeyboardInterrupt()
    assert cli.main(["run", image, "--task", "od"]) == 130
    assert capsys.readouterr().err == ""


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


def test_no_command_prints_the_help(capsys):
    """It is what a first call of a program is for."""
    assert cli.main([]) == 0
    assert "florence2 batch photos/" in capsys.readouterr().out


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.keyword)
def test_messages_name_the_flag_of_an_option(server, image, capsys, option):
    """The server knows tensors, not flags."""
    server.failure = InvalidOption(f"{option.name} must be something else")
    assert cli.main(["run", image, "--task", "od"]) == 2
    flag = "--" + option.keyword.replace("_", "-")
    assert capsys.readouterr().err == f"florence2: {flag} must be something else\n"


def test_the_environment_names_the_server(server, image, monkeypatch):
    """`--url` has the last word."""
    monkeypatch.setenv("FLORENCE2_URL", "http://box:1")
    cli.main(["run", image, "--task", "od"])
    cli.main(["run", image, "--task", "od", "--url", "http://other:2"])
    monkeypatch.setenv("FLORENCE2_URL", "")
    cli.main(["run", image, "--task", "od"])
    assert server.urls == ["http://box:1", "http://other:2", "grpc://127.0.0.1:8001"]


@pytest.mark.parametrize(
    "link", [os.symlink, os.link, lambda _image, _path: None], ids=["symlink", "hard link", "same"]
)
def test_the_image_is_not_overwritten_by_its_drawing(server, image, tmp_path, capsys, link):
    """Nor is it under another name, or when it comes on standard input."""
    content = Path(image).read_bytes()
    path = tmp_path / "other.png"
    link(image, path)
    drawing = str(path) if path.exists() else image
    assert cli.main(["run", image, "--task", "od", "--draw", drawing]) == 2
    assert "would overwrite the image" in capsys.readouterr().err
    with open(image, "rb") as stream:
        command = [*COMMAND, "run", "-", "--task", "od", "--url", "127.0.0.1:1", "--draw", drawing]
        ended = subprocess.run(command, stdin=stream, stderr=subprocess.PIPE, timeout=60)
    assert ended.returncode == 2 and b"would overwrite the image" in ended.stderr
    assert Path(image).read_bytes() == content and server.asked == []


def test_a_document_is_answered_page_by_page(server, image, tmp_path, capsys):
    """Each with a line and a drawing of its own."""
    sheet = Image.open(image)
    sheet.save(tmp_path / "scan.tif", save_all=True, append_images=[sheet])
    drawn = tmp_path / "found.png"
    assert cli.main(["run", str(tmp_path / "scan.tif"), "--task", "od", "--draw", str(drawn)]) == 0
    assert [json.loads(line)["page"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    assert {path.name for path in tmp_path.glob("found*")} == {"found-1.png", "found-2.png"}


def test_free_prompt_is_announced(server, image, capsys, monkeypatch):
    """Once, and the answer follows."""
    monkeypatch.setitem(ANSWERS, "Which season is it?", "summer")
    assert cli.main(["run", image, "--task", "Which season is it?", "--no-json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("summer\n")
    assert captured.err.count("free prompt") == captured.err.count("\n") == 1


def test_drawing_on_a_full_disk_names_the_file(server, image, tmp_path, capsys):
    """A full disk is no mistake in the command."""
    (tmp_path / "full.png").symlink_to("/dev/full")
    assert cli.main(["run", image, "--task", "od", "--draw", str(tmp_path / "full.png")]) == 1
    assert capsys.readouterr().err == f"florence2: {tmp_path}/full.png cannot be written: No space left on device\n"


def test_tasks_lists_the_table(capsys):
    """Every task is listed by the name that `--task` takes."""
    names = [task.name for task in TASKS.values()]
    assert cli.main(["tasks", "--no-json"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names
    assert cli.main(["tasks"]) == 0
    assert [json.loads(line)["task"] for line in capsys.readouterr().out.splitlines()] == names


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_is_printed(capsys, arguments):
    """Help ends the program well and says how the command is called."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 0
    assert "usage: florence2" in capsys.readouterr().out


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


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_gets_text_and_styles(server, image, monkeypatch):
    """On a terminal people read a table with a bold heading; NO_COLOR and a dumb terminal leave the style out."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["run", image, "--task", "od"]) == 0
    assert sys.stdout.getvalue().startswith("\x1b[1mlabel  confidence  box (x1,y1 x2,y2)\x1b[0m\n")
    monkeypatch.setenv("TERM", "dumb")
    assert console.styled("x", "red", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.styled("x", "red", Terminal()) == "x"


def test_connection_arguments_reach_the_client(server, image, capsys, tmp_path):
    """Headers go with the request; an authority is for TLS only."""
    assert cli.main(["run", image, "--task", "od", "--header", "X-Key: a:b", "--header", "Y:2"]) == 0
    assert server.addresses[0].headers == {"x-key": "a:b", "y": "2"}
    assert cli.main(["run", image, "--task", "od", "--header", "nonsense"]) == 2
    assert cli.main(["run", image, "--task", "od", "--ca", str(tmp_path / "no.pem"), "--url", "grpcs://x"]) == 2
    assert "TLS files cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_is_printed(capsys, shell):
    """A script for each shell, which knows the commands."""
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as end:
        cli.main(["--print-completion", shell])
    assert end.value.code == 0
    script = capsys.readouterr().out
    assert all(name in script for name in cli.COMMANDS)


def test_missing_completion_package_is_named(monkeypatch, capsys):
    """Who lacks shtab is told how to get it."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 1
    assert "pip install shtab" in capsys.readouterr().err


COMMAND = [sys.executable, "-c", "import sys; from florence2_command import main; sys.exit(main())"]


def run_process(*arguments, **options):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, **options)


def test_standard_input_is_a_image():
    """`-` reads the image from standard input; an empty one is refused."""
    ended = run_process("run", "-", "--task", "od", input=b"")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr == b"florence2: the image is empty (0 bytes)\n"


def test_image_from_standard_input_is_sent(server, monkeypatch, image):
    """The bytes on standard input travel untouched."""
    with open(image, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stream, isatty=lambda: False))
        assert cli.main(["run", "-", "--task", "od"]) == 0
    with open(image, "rb") as stream:
        assert server.asked[0][1]["IMAGE"] == stream.read()


def test_stopped_server_is_explained():
    """Without a server the real transport's error says how to start one; exit code 3."""
    ended = run_process("run", "-", "--task", "od", "--url", "127.0.0.1:1", input=b"x")
    assert (ended.returncode, ended.stdout) == (3, b"")
    assert ended.stderr.startswith(b"florence2: no answer from grpc://127.0.0.1:1 (connection refused)")
    assert ended.stderr.count(b"\n") == 1


def test_closed_pipe_is_quiet():
    """A reader that went away (`| head`) leaves no traceback."""
    process = subprocess.Popen([*COMMAND, "tasks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_full_disk_is_told():
    """Output that cannot be written is an error, not a traceback."""
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([*COMMAND, "tasks"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        1,
        b"florence2: standard output cannot be written: No space left on device\n",
    )


def test_terminal_without_unicode_gets_escapes(server, image, monkeypatch):
    """An ASCII-only output stream prints escapes instead of failing."""
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert cli.main(["run", image, "--task", "caption", "--no-json"]) == 0
    assert ascii_only.buffer.getvalue().startswith(b"a caf\\xe9\n")
    assert cli.main(["run", image, "--task", "caption", "--json"]) == 0
    assert json.loads(ascii_only.buffer.getvalue().splitlines()[-1])["answer"] == "a café"


@pytest.mark.parametrize("seconds", [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
def test_ctrl_c_leaves_no_traceback_at_any_moment(tmp_path, seconds):
    """Nor while the program is still being loaded. The interpreter's own start is left out."""
    loaded = tmp_path / "loaded"
    code = "import sys; import florence2_command as command; import signal; old = signal.signal\n"
    code += f"signal.signal = lambda *two: (old(*two), open({str(loaded)!r}, 'w').close())[0]\n"
    command = [sys.executable, "-c", f"{code}sys.exit(command.main())"]
    process = subprocess.Popen(
        [*command, "run", "-", "--task", "od", "--url", "grpc://127.0.0.1:1"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not loaded.exists():
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


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
