"""`florence2 batch` against the real server: killed, interrupted, and with the server restarted under it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.batch import make_images, measure
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions

IMAGES = 60


@pytest.fixture
def images(tmp_path):
    make_images(tmp_path / "images", IMAGES)
    return tmp_path / "images"


def batch(url, images, *arguments):
    command = [str(Path(sys.executable).with_name("florence2")), "batch", str(images), "--tasks", "caption"]
    command += ["--out", str(images.with_suffix(".jsonl")), "--url", url, "--num-beams", "1", "--max-new-tokens", "1"]
    return subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)


def heed_ctrl_c():
    """Who was started in the background ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def answers(images):
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in images.with_suffix(".jsonl").read_text().splitlines()]
    return []


def wait_for(count, images):
    end = time.monotonic() + 60
    while len(answers(images)) < count and time.monotonic() < end:
        time.sleep(0.02)


def test_killed_run_is_resumed_and_memory_stays_flat(server, images, capsys):
    """kill -9 half way, then the rest: each image has one answer. `python -m bench.batch` does it with 10,000."""
    assert measure(server.grpc_url, images, images.with_suffix(".jsonl"), IMAGES) == []


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_ctrl_c_ends_soon_and_loses_nothing(server, images, protocol):
    """Exit code 130 and a sentence; the same command does the rest."""
    url = getattr(server, f"{protocol}_url")
    first = batch(url, images)
    wait_for(5, images)
    first.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert time.monotonic() - start < 20
    assert "left; run the same command again to resume" in errors and "Traceback" not in errors
    second = batch(url, images)
    _, errors = second.communicate(timeout=180)
    assert second.returncode == 0, errors
    assert set(Counter(line["image"] for line in answers(images)).values()) == {1}
    assert len(answers(images)) == IMAGES


def test_restarted_server_is_waited_for(repository, images):
    """The server stops during a run and another takes its place on the same port: every image has one answer."""
    with EmbeddedServer(ServingOptions.on_free_ports(repository)) as first:
        port = int(first.grpc_url.rpartition(":")[2])
        run = batch(first.grpc_url, images)
        wait_for(5, images)
    assert len(answers(images)) < IMAGES
    with EmbeddedServer(ServingOptions.on_free_ports(repository, grpc_port=port)):
        _, errors = run.communicate(timeout=180)
    assert run.returncode == 0, errors
    assert set(Counter(line["image"] for line in answers(images)).values()) == {1}
    assert len(answers(images)) == IMAGES
