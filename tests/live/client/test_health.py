"""`florence2 health` tells the truth where Triton's own health routes do not: every stage is killed once."""

import contextlib
import http.server
import os
import re
import shutil
import signal
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from PIL import Image

from florence2.errors import DeadlineExceeded, Florence2Error, InternalError, QueueFull, Unavailable
from florence2.server.embedded import EmbeddedServer, model_processes
from florence2.server.options import ServingOptions
from florence2_client import Client, cli
from florence2_client.cli.health import check_health
from florence2_export.repository import read_config, write_config


class Broken:
    """A transport that raises, after the whole time limit if the error is a missed deadline."""

    def __init__(self, *errors, then=None):
        self.errors, self.then = list(errors), then

    def infer(self, model, tensors, timeout):
        error = self.errors[0] if len(self.errors) == 1 and self.then is None else None
        if error is None and self.errors and model.endswith("_ensemble"):
            error = self.errors.pop(0)
        if isinstance(error, DeadlineExceeded):
            time.sleep(timeout)
        if error is not None:
            raise error

    def close(self):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (QueueFull("the queue is full"), "the queue is full; no other request made progress: a stage hangs"),
        (Unavailable("the decoder stopped working and must be restarted"), "must be restarted"),
        (DeadlineExceeded("no answer within 3 seconds"), "no answer within 3 seconds; no other request made progress"),
        (InternalError("the server failed on this request; see its log"), "not working: the server failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_without_progress_is_not_alive(error, words):
    """A full queue proves nothing: the stage behind it may hang."""
    health = check_health("grpc://127.0.0.1:1", timeout=3, transport=Broken(error))
    assert not health.alive and words in health.sentence


def test_a_queue_that_empties_is_alive():
    """Without metrics, a place that becomes free and an answer to the probe are the evidence."""
    full = QueueFull("the queue is full")
    health = check_health("grpc://127.0.0.1:1", timeout=5, transport=Broken(full, full, then="answers"))
    assert health.alive and health.sentence.startswith("alive: all stages answered")


class Metrics(http.server.BaseHTTPRequestHandler):
    """Triton's metrics, with the next of `counts` for the decoder's steps at each look; the last one stays."""

    counts: ClassVar[list[int]] = []

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        count = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        self.wfile.write(
            b"# TYPE nv_inference_request_success counter\n"
            b'nv_inference_request_success{model="florence2_vision",version="1"} %d\n'
            b'nv_inference_request_success{model="florence2_ensemble",version="1"} 7\n'
            b'florence2_steps_total{model="florence2_decoder"} %d\n' % (time.monotonic_ns(), count)
        )

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("error", [DeadlineExceeded("no answer within 4 seconds"), QueueFull("the queue is full")])
@pytest.mark.parametrize(("counts", "alive"), [([3, 4], True), ([3], False)])
def test_too_busy_to_answer_is_told_from_hanging(error, counts, alive):
    """The counters of the decoder and the ensemble tell; an encoder that works for no request is no sign of life."""
    Metrics.counts = counts.copy()
    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as endpoint:
        threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{endpoint.server_port}/metrics"
        health = check_health("grpc://127.0.0.1:1", timeout=4, metrics=url, transport=Broken(error))
        endpoint.shutdown()
    assert health.alive == alive and ("other requests make progress" in health.sentence) == alive


def test_a_healthy_server_is_alive(server, capsys):
    """Exit code 0 and one sentence."""
    assert cli.main(["health", "--url", server.grpc_url]) == 0
    assert capsys.readouterr().out.startswith("alive: all stages answered in")
    assert check_health(server.http_url).alive


def test_no_server_is_not_alive(capsys):
    """Exit code 1 and the reason on standard error."""
    assert cli.main(["health", "--url", "grpc://127.0.0.1:1", "--timeout", "5"]) == 1
    assert "is the server running?" in capsys.readouterr().err


def test_a_dead_or_hanging_process_is_noticed_and_named(repository):
    """Within the deadline and by any probe, although one of two preprocessors lives and Triton says 200.

    Hurt from the last stage to the first, since a probe names the first that fails.
    """
    with EmbeddedServer(ServingOptions.on_free_ports(repository)) as server:
        assert check_health(server.grpc_url, timeout=20).alive
        for stage, hurt in (("postprocess", signal.SIGKILL), ("decoder", signal.SIGSTOP),
                            ("vision", signal.SIGKILL), ("preprocess", signal.SIGKILL)):  # fmt: skip
            model = f"florence2_{stage}"
            victim = next(process for process, name in model_processes(server._folder).items() if name == model)
            os.kill(victim, hurt)
            health = check_health(server.grpc_url, timeout=10, metrics=server.metrics_url)
            assert not health.alive and health.sentence == f"a process of {model} is dead or hangs"
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready") as answer:
            assert answer.status == 200


@pytest.mark.parametrize("stage", [None, "decoder", "vision"])
def test_a_full_queue_is_a_sign_of_life_only_while_the_server_works(repository, tmp_path, stage):
    """The same queue is full of requests in progress, or of requests that a stopped process holds up."""
    few = tmp_path / "repository"
    shutil.copytree(repository, few)
    config = read_config(few / "florence2_preprocess")
    config.parameters["max_inside"].string_value = "4"
    write_config(few / "florence2_preprocess", config)
    over = threading.Event()

    def send() -> None:
        with Client(server.grpc_url, retry_for=0) as client:
            while not over.is_set():
                with contextlib.suppress(Florence2Error):
                    client.run(Image.new("RGB", (64, 64), tuple(os.urandom(3))), "more_detailed_caption", timeout=30)

    with EmbeddedServer(ServingOptions.on_free_ports(few)) as server, ThreadPoolExecutor(12) as pool:
        assert check_health(server.grpc_url, timeout=20).alive
        try:
            for _ in range(12):
                pool.submit(send)
            time.sleep(2)
            if stage:
                stopped = next(p for p, name in model_processes(server._folder).items() if name == f"florence2_{stage}")
                os.kill(stopped, signal.SIGSTOP)
                time.sleep(1)
            health = check_health(server.grpc_url, timeout=15, metrics=server.metrics_url)
            assert health.alive == (stage is None), health.sentence
            assert health.alive or re.search(f"florence2_{stage} is dead or hangs|no other request", health.sentence)
        finally:
            over.set()


def test_a_crashed_encoder_is_the_servers_failure_in_a_stream_too(repository):
    """Triton passes no status on in a stream, and its own message has no code."""
    with EmbeddedServer(ServingOptions.on_free_ports(repository, stream=True)) as server:
        encoder = next(
            process for process, name in model_processes(server._folder).items() if name == "florence2_vision"
        )
        os.kill(encoder, signal.SIGKILL)
        for url in server.grpc_url, server.http_url:
            with Client(url, retry_for=0) as client, pytest.raises(InternalError) as caught:
                list(client.stream(Image.new("RGB", (64, 64), tuple(os.urandom(3))), "od", timeout=30))
            assert caught.value.exit_code == 1 and "ensemble" not in str(caught.value)
