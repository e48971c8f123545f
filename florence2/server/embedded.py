"""EmbeddedServer: a Triton Inference Server for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from florence2.errors import ServerError
from florence2.server import gpu, supervisor
from florence2.server.addresses import choose_addresses
from florence2.server.folder import assemble, mirror, models_of, version_problem
from florence2.server.installation import STUB, Installation, find_installation, find_wheel
from florence2.server.launch import command_line, environment, expected_regions, require_shared_memory, wants_gpu
from florence2.server.log import LogReader
from florence2.server.options import ServingOptions
from florence2.server.streaming import write_streaming_models
from florence2.triton.admission import PATH_VARIABLE
from florence2.triton.cache import ANSWERS_VARIABLE, FEATURES_VARIABLE

WATCH_SECONDS = 0.5
TRITON = "tritonserver"


class ServerDied(ServerError):
    """A server that had been ready stopped by itself, or one of its models' processes did."""


class EmbeddedServer:
    """Tritonserver with an exported repository. Entering waits until all models are ready; leaving stops it.

    `report` gets a line for every step and every problem, from another thread.
    Entering raises ServerError with one sentence if the server cannot start.
    """

    def __init__(self, options: ServingOptions, report: Callable[[str], None] = print) -> None:
        self._options = options
        self._report = report
        self._log = LogReader()
        self._shm_prefix = f"florence2_{os.getpid()}_{secrets.token_hex(4)}_"
        self._stop_seconds = options.drain_seconds + supervisor.UNLOAD_SECONDS
        self._stop_at_once = False  # without waiting for running requests

    @property
    def options(self) -> ServingOptions:
        """Return the options, with the ports that were chosen in place of 0."""
        chosen = self._addresses
        return replace(
            self._options,
            http_port=chosen.http_port,
            grpc_port=chosen.grpc_port,
            metrics_port=chosen.metrics_port,
        )

    @property
    def grpc_url(self) -> str:
        """Return the URL for gRPC clients on this machine."""
        return f"grpc://{self._addresses.client_host}:{self._addresses.grpc_port}"

    @property
    def http_url(self) -> str:
        """Return the URL for HTTP clients on this machine."""
        return f"http://{self._addresses.client_host}:{self._addresses.http_port}"

    @property
    def metrics_url(self) -> str:
        """Return the URL of Prometheus metrics."""
        return f"http://{self._addresses.client_host}:{self._addresses.metrics_port}/metrics"

    def __enter__(self) -> EmbeddedServer:
        options = self._options
        if problem := version_problem(models_of(options.repository)):
            self._report(problem)
        self._addresses = choose_addresses(options.host, options.http_port, options.grpc_port, options.metrics_port)
        if not self._addresses.is_loopback:
            if options.model_control:
                raise ServerError(
                    "model control lets clients run code on this machine, so it cannot be offered on "
                    f"{self._addresses.host}; listen on 127.0.0.1, or leave out --model-control"
                )
            self._report(f"no access control: every client that can reach {self._addresses.host} can send requests")
        self._folder = Path(tempfile.mkdtemp(prefix="florence2-server-"))
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(supervisor.remove_leftovers, self._folder, self._shm_prefix)
            triton = (
                find_installation(options.tritonserver)
                if options.tritonserver
                else assemble(self._folder, find_wheel())
            )
            served = options.repository.resolve()
            if not options.model_control:
                served = mirror(self._folder, options.repository)
            if options.stream:
                write_streaming_models(options.repository, served)
            gpus = self._gpus(triton) if wants_gpu(served) else []
            require_shared_memory(expected_regions(served, triton))
            command = command_line(triton, served, self._shm_prefix, self._addresses, options)
            self._process = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__, str(self._folder), self._shm_prefix,
                 str(self._stop_seconds), *command],
                env={
                    **environment(triton, gpus),
                    PATH_VARIABLE: str(self._folder / "tickets"),
                    FEATURES_VARIABLE: str(options.cache_mib),
                    ANSWERS_VARIABLE: str(options.cache_answers),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches only us, and we stop the server in order
            )  # fmt: skip
            cleanup.callback(self._stop)
            self._reader = threading.Thread(target=self._relay_log, name="tritonserver log", daemon=True)
            self._reader.start()
            self._wait_until_ready()
            # Listed now, not when `wait` begins, so that a process that dies in between is noticed.
            self._models = {} if options.model_control else model_processes(self._folder)
            self._cleanup = cleanup.pop_all()
        return self

    def _gpus(self, triton: Installation) -> list[str]:
        """Return the GPU to use, for CUDA_VISIBLE_DEVICES. Raise ServerError if none can be used."""
        if problem := gpu.problem(own_onnxruntime=triton.runs_in_python("onnxruntime")):
            raise ServerError(problem)
        gpus = gpu.visible_gpus()
        if len(gpus) > 1:  # Triton would run each model on every GPU, and an engine would not know of the other
            self._report(
                f"{len(gpus)} GPUs are visible, and a server uses one: this one uses {gpus[0]}; for the others "
                "start more servers with CUDA_VISIBLE_DEVICES (docs/gpu.md)"
            )
        return gpus[:1]

    def __exit__(self, *_exception: object) -> None:
        """Answer running requests, then stop. Ctrl-C meanwhile stops at once. Nothing is left either way."""
        self._cleanup.close()

    def wait(self) -> None:
        """Block while the server and its models' processes run. Raise ServerDied when one of them has died.

        A model without its process cannot answer, so the server then stops without waiting for running requests. Under
        model control processes are not watched, because loading a model again regularly ends some of them.
        """
        while (code := self._process.poll()) is None:
            dead = [model for process, model in self._models.items() if not is_alive(process)]
            if dead and self._triton_runs():  # otherwise its models died with it, and the supervisor ends soon
                self._stop_at_once = True
                raise ServerDied(f"a process of {dead[0]} died")
            time.sleep(WATCH_SECONDS)
        raise ServerDied(f"tritonserver stopped by itself: {_describe_exit(code)}")

    def _triton_runs(self) -> bool:
        try:
            children = psutil.Process(self._process.pid).children()
            return any(child.name() == TRITON and child.status() != psutil.STATUS_ZOMBIE for child in children)
        except psutil.Error:
            return False

    def _relay_log(self) -> None:
        """Read to the end, whatever `report` does: a full pipe would block tritonserver."""
        assert self._process.stdout is not None
        mirror = str(self._folder / "repository")
        for line in self._process.stdout:
            shown = self._log.read(line.decode(errors="replace").replace(mirror, str(self._options.repository)))
            if shown is not None:
                with contextlib.suppress(Exception):
                    self._report(shown)

    def _wait_until_ready(self) -> None:
        while not self._is_ready():
            code = self._process.poll()
            if code is not None:
                self._reader.join()
                if self._log.listening:  # a request can end it before we notice that it is ready
                    raise ServerDied(f"tritonserver stopped by itself: {_describe_exit(code)}")
                reasons = self._log.failures or self._log.errors[-1:]
                raise ServerError(
                    "; ".join(reasons)
                    or f"tritonserver stopped before it was ready: {_describe_exit(code)}; see its log above"
                )
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self._addresses.client_host, self._addresses.http_port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            if self._stop_at_once:
                time.sleep(2 * supervisor.POLL_SECONDS)  # two signals at the same time would count as one
                self._process.terminate()
            self._process.wait(self._stop_seconds + supervisor.KILL_SECONDS)
        except KeyboardInterrupt:
            self._process.terminate()
            self._process.wait(supervisor.KILL_SECONDS)
            raise
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(supervisor.KILL_SECONDS)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()


def model_processes(folder: Path) -> dict[int, str]:
    """Return process id -> model for the Python models of the server that runs in `folder`.

    Triton does not notice when one of these processes dies, so EmbeddedServer watches them.
    """
    repository = folder / "repository"
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command: list[str] = process.info["cmdline"] or []  # None if we may not read it
        if len(command) > 1 and command[0].endswith(STUB) and Path(command[1]).is_relative_to(repository):
            found[process.pid] = Path(command[1]).relative_to(repository).parts[0]
    return found


def is_alive(process: int) -> bool:
    """Return whether this is still a model's process. One that has died but was not waited for has no command line."""
    try:
        return bool(command := psutil.Process(process).cmdline()) and command[0].endswith(STUB)
    except psutil.Error:
        return False


def _describe_exit(code: int) -> str:
    """Describe an exit code. The supervisor's is 128 + N if signal N ended tritonserver, -N if it ended itself."""
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code if code < 0 else code - 128).name}"
    return f"exit code {code}"
