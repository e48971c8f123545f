"""`florence2 health` tells the truth where Triton's own health routes do not: every stage is killed once."""

import http.server
import os
import signal
import threading
import time
import urllib.request
from typing import ClassVar

import pytest

from florence2.engine.scheduler import Scheduler
from florence2.errors import DeadlineExceeded, InternalError, QueueFull, Unavailable
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2.server.stubs import model_processes
from florence2_client import cli
from florence2_client.cli.health import check_health


class Broken:
    """A transport that raises."""

    def __init__(self, error):
        self.error = error

    def infer(self, model, tensors, timeout):
        raise self.error

    def close(self):
        pass


def queue_full() -> QueueFull:
    with pytest.raises(QueueFull) as caught:
        Scheduler(rows=1, max_waiting=0).require_room()
    return caught.value


@pytest.mark.parametrize(
    ("error", "alive", "words"),
    [
        (queue_full(), True, "alive, but busy"),
        (Unavailable("the decoder stopped working and must be restarted"), False, "must be restarted"),
        (DeadlineExceeded("no answer within 3 seconds"), False, "no answer within 3 s: a stage hangs"),
        (InternalError("the server failed on this request; see its log"), False, "not working: the server failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_refusal_is_judged(error, alive, words):
    """Who says that the queue is full is alive; nobody should restart a busy server."""
    health = check_health("grpc://127.0.0.1:1", timeout=3, transport=Broken(error))
    assert health.alive == alive and words in health.sentence


class Metrics(http.server.BaseHTTPRequestHandler):
    """Triton's metrics, with the next of `counts` for the decoder's rounds at each look."""

    counts: ClassVar[list[int]] = []

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        count = self.counts.pop(0)
        self.wfile.write(
            b"# TYPE nv_inference_request_success counter\n"
            b'nv_inference_request_success{model="florence2_vision",version="1"} %d\n'
            b'nv_inference_request_success{model="florence2_ensemble",version="1"} 7\n'
            b'florence2_steps_total{model="florence2_decoder"} %d\n' % (time.monotonic_ns(), count)
        )

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("counts", "alive"), [([3, 4], True), ([3, 3], False)])
def test_too_busy_to_answer_is_told_from_hanging(counts, alive):
    """By what the decoder and the ensemble got done meanwhile; an encoder that works for nobody is no sign of life."""
    Metrics.counts = counts.copy()
    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as endpoint:
        threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{endpoint.server_port}/metrics"
        late = Broken(DeadlineExceeded("no answer within 3 seconds"))
        health = check_health("grpc://127.0.0.1:1", timeout=3, metrics=url, transport=late)
        endpoint.shutdown()
    assert health.alive == alive and ("others were answered" in health.sentence) == alive


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
