"""The embedded server, as its users see it, answers, fails with a reason, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from florence2.errors import ServerError
from florence2.server.embedded import EmbeddedServer, model_processes
from florence2.server.options import ServingOptions
from tests.live.server.small_models import onnx_model, python_model

RUNNING = "a-request-runs"  # a file that appears when a request reaches the model
SLEEP = (
    f"import os, time; open(os.path.join(os.environ['TMPDIR'], '{RUNNING}'), 'w').close(); "
    "time.sleep(float(pb_utils.get_input_tensor_by_name(requests[0], 'X').as_numpy()[0]))"
)
SERVE = """
import sys
from pathlib import Path
from florence2.server.foreground import serve
from florence2.server.options import ServingOptions
sys.exit(serve(ServingOptions.on_free_ports(Path(sys.argv[1]))))
"""


def any_ports(repository: Path, report=lambda line: None, **options) -> EmbeddedServer:
    return EmbeddedServer(ServingOptions.on_free_ports(repository, **options), report=report)


@contextlib.contextmanager
def connection(server: EmbeddedServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


def tensor(values: np.ndarray) -> triton.InferInput:
    item = triton.InferInput("X", list(values.shape), "FP32")
    item.set_data_from_numpy(values)
    return item


def shared_memory(owner: int) -> set[str]:
    """Return the regions of the servers that the process `owner` started."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"florence2_{owner}_")}


def folders(temporary: Path) -> set[str]:
    return {path.name for path in temporary.glob("florence2-server-*")}


def processes(mark: str) -> list[str]:
    """Return the command lines of the live processes that contain `mark`."""
    commands = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [command for command in commands if mark in command]


def infer_at_once(client: triton.InferenceServerClient, model: str, rows: list[np.ndarray]) -> list:
    """Send a request for each of `rows` and return the responses, results or errors, in the same order."""
    responses: dict = {}
    for n, row in enumerate(rows):
        client.async_infer(model, [tensor(row)], lambda result, error, n=n: responses.update({n: error or result}))
    while len(responses) < len(rows):
        time.sleep(0.01)
    return [responses[n] for n in range(len(rows))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_model(python_model(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def running(models: Path) -> Iterator[EmbeddedServer]:
    with any_ports(models) as server:
        yield server


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this test's servers their own folder for temporary files, which identifies their leftovers and processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def serving(temporary: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `serve` in another process and wait until it is ready."""
    repository = python_model(tmp_path / "models", execute=SLEEP)
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(repository)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  http://") and "metrics" in line:
            break
    yield process
    process.kill()
    process.communicate()


def grpc_address(temporary: Path) -> str:
    """Return where the server of the `serving` process listens."""
    command = next(command for command in processes(str(temporary)) if "--grpc-port=" in command)
    return "127.0.0.1:" + command.partition("--grpc-port=")[2].split()[0]


def wait_until_running(temporary: Path, seconds: float = 60) -> None:
    """Wait until a request has reached the model of the `serving` process."""
    end = time.monotonic() + seconds
    while not (temporary / RUNNING).exists():
        assert time.monotonic() < end, "the request did not reach the model"
        time.sleep(0.02)


def child_of(process: int, name: str) -> int:
    """Return the process id of the child whose command line contains `name`."""
    return next(child.pid for child in psutil.Process(process).children() if name in " ".join(child.cmdline()))


def wait_until_gone(temporary: Path, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while processes(str(temporary)) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes(str(temporary)) == []


def test_answers_over_grpc_and_http(running):
    """It listens on all three ports that it reports."""
    with connection(running) as client:
        assert client.infer("double", [tensor(np.array([1, 2], np.float32))]).as_numpy("Y").tolist() == [2, 4]
    assert urllib.request.urlopen(f"{running.http_url}/v2/health/ready").status == 200
    assert b"nv_inference_count" in urllib.request.urlopen(running.metrics_url).read()


def test_onnx_models_run_in_batches(running):
    """Requests that wait together run as one batch, and each gets its own rows back."""
    rows = [np.full((1 + n % 2, 4), n, np.float32) for n in range(4)]
    with connection(running) as client:
        responses = infer_at_once(client, "triple", rows)
        end = time.monotonic() + 60
        while (statistics := client.get_inference_statistics("triple").model_stats[0]).inference_count < 6:
            assert time.monotonic() < end, "Triton counts requests soon after their responses"
    for row, response in zip(rows, responses, strict=True):
        np.testing.assert_array_equal(response.as_numpy("Y"), 3 * row)
    assert statistics.execution_count < statistics.inference_count


def test_requests_that_cannot_be_batched_run_one_by_one(running):
    """Rows of different lengths cannot form a batch; both requests are answered all the same."""
    with connection(running) as client:
        responses = infer_at_once(client, "triple", [np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)])
    assert [response.as_numpy("Y").shape for response in responses] == [(1, 2), (1, 3)]


def test_a_second_server_starts_and_stops(running, models, temporary):
    """It reports its progress, leaves nothing behind, and disturbs neither the first server nor the repository."""
    lines: list[str] = []
    memory, files = shared_memory(os.getpid()), sorted(models.rglob("*"))
    with any_ports(models, lines.append):
        assert shared_memory(os.getpid()) > memory and folders(temporary) and processes(str(temporary))
    assert sorted(lines) == ["double: loading", "double: ready", "triple: loading", "triple: ready"]
    assert shared_memory(os.getpid()) == memory and not folders(temporary) and not processes(str(temporary))
    assert sorted(models.rglob("*")) == files
    with connection(running) as client:
        assert client.infer("double", [tensor(np.full(1, 3, np.float32))]).as_numpy("Y").tolist() == [6]


@pytest.mark.parametrize(
    ("initialize", "reason"),
    [
        ("raise ValueError('the weights are broken')", "double cannot be loaded: ValueError: the weights are broken"),
        ("import no_such_module", "double cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os._exit(1)", "double cannot be loaded: its process died, perhaps because memory ran out"),
    ],
)
def test_model_that_cannot_load_is_reported_with_its_reason(tmp_path, temporary, initialize, reason):
    """The error is that one sentence, and the attempt leaves nothing behind."""
    with pytest.raises(ServerError) as caught, any_ports(python_model(tmp_path / "models", initialize=initialize)):
        pass
    assert str(caught.value) == reason
    assert not folders(temporary) and not processes(str(temporary))


def test_taken_port_is_reported_before_anything_starts(tmp_path):
    """Users need not wait until models are loaded to learn that the port is taken."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is already in use; choose another with --grpc-port"):
            any_ports(python_model(tmp_path / "models"), grpc_port=port).__enter__()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_when_running_requests_are_answered(serving, temporary, number):
    """After Ctrl-C or SIGTERM the request in flight is answered, the exit code is 0, and nothing is left."""
    outcome: queue.SimpleQueue = queue.SimpleQueue()
    with triton.InferenceServerClient(grpc_address(temporary)) as client:
        client.async_infer(
            "double", [tensor(np.ones(1, np.float32))], lambda result, error: outcome.put(error or result)
        )
        wait_until_running(temporary)
        serving.send_signal(number)
        assert outcome.get(timeout=30).as_numpy("Y").tolist() == [2]
    output, _ = serving.communicate(timeout=30)
    assert serving.returncode == 0
    assert "Stopping when running requests are answered" in output
    assert not folders(temporary) and not processes(str(temporary)) and not shared_memory(serving.pid)


def test_a_second_signal_stops_it_at_once(serving, temporary):
    """Running requests are not waited for, and still nothing is left."""
    with triton.InferenceServerClient(grpc_address(temporary)) as client:
        client.async_infer("double", [tensor(np.full(1, 60, np.float32))], lambda result, error: None)
        wait_until_running(temporary)
        for _ in range(2):
            serving.send_signal(signal.SIGINT)
            time.sleep(0.3)
        serving.communicate(timeout=30)
    assert serving.returncode == 0
    assert not folders(temporary) and not processes(str(temporary)) and not shared_memory(serving.pid)


def test_nothing_is_left_when_serve_is_killed(serving, temporary):
    """`kill -9` ends the other processes too, and files and shared memory are freed."""
    assert shared_memory(serving.pid)
    serving.kill()
    serving.wait(timeout=15)
    wait_until_gone(temporary)
    assert not folders(temporary) and not shared_memory(serving.pid)


@pytest.mark.parametrize("times", [{"drain_seconds": -1}, {"connection_age": 0}])
def test_meaningless_times_are_refused(times):
    """Options are checked before anything starts."""
    with pytest.raises(ServerError, match="--drain-seconds must be at least 0, and --connection-age at least 1"):
        ServingOptions(**times)


@pytest.mark.parametrize("victim", ["stub", "tritonserver", "supervisor"])
def test_it_restarts_when_a_process_is_killed(serving, temporary, victim):
    """The same address answers again, nothing is left of the dead server, and one signal stops everything."""
    address, [folder] = grpc_address(temporary), folders(temporary)
    supervisor = child_of(serving.pid, "supervisor.py")
    tritonserver = child_of(supervisor, "tritonserver")
    [stub] = model_processes(temporary / folder)
    os.kill({"stub": stub, "supervisor": supervisor, "tritonserver": tritonserver}[victim], signal.SIGKILL)
    for line in serving.stdout:
        if "Listening on" in line:
            break
    with triton.InferenceServerClient(address) as client:
        assert client.infer("double", [tensor(np.zeros(1, np.float32))]).as_numpy("Y").tolist() == [0]
    assert folder not in folders(temporary) and len(folders(temporary)) == 1
    serving.send_signal(signal.SIGINT)
    serving.communicate(timeout=30)
    assert serving.returncode == 0
    assert not folders(temporary) and not processes(str(temporary)) and not shared_memory(serving.pid)
