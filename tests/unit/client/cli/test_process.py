"""The command as a process: standard input, closed pipes, a full disk and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import types

import pytest

from florence2_client import cli
from tests.unit.client.cli.processes import COMMAND, run_process


def test_an_empty_standard_input_is_refused():
    """`-` stands for standard input."""
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


def test_a_closed_pipe_ends_the_command_without_a_message():
    """This is what `| head` does."""
    process = subprocess.Popen([*COMMAND, "tasks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_output_to_a_full_disk_is_an_error_of_one_sentence():
    """There is no traceback."""
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([*COMMAND, "tasks"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        1,
        b"florence2: standard output cannot be written: No space left on device\n",
    )


def test_ctrl_c_exits_with_130(server, image, capsys):
    """Nothing is printed."""
    server.failure = KeyboardInterrupt()
    assert cli.main(["run", image, "--task", "od"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seconds", [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
def test_ctrl_c_leaves_no_traceback_at_any_moment(tmp_path, seconds):
    """Neither while the program is being imported. The start of the interpreter itself is left out."""
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
