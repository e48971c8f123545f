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

from florence2.errors import ServerError
from florence2.server import supervisor
from florence2.server.addresses import choose_addresses
from florence2.server.folder import assemble, mirror, models_of
from florence2.server.installation import find_installation, find_wheel
from florence2.server.launch import command_line, environment, require_shared_memory
from florence2.server.log import LogReader
from florence2.server.options import ServingOptions
from florence2.server.streaming import write_streaming_models
from florence2.server.stubs import expected_processes, is_alive, model_processes
from florence2.triton.admission import PATH_VARIABLE

WATCH_SECONDS = 0.5


class EmbeddedServer:
    """Tritonserver with an exported repository. Entering waits until all models are ready, leaving stops it.

    `report` gets a line for every step and every problem, from another thread.
    Entering raises ServerError with one sentence when the server cannot start.
    """

    def __init__(self, options: ServingOptions, report: Callable[[str], None] = print) -> None:
        self._options = options
        self._report = report
        self._log = LogReader()
        self._shm_prefix = f"florence2_{os.getpid()}_{secrets.token_hex(4)}_"
        self._stop_seconds = options.drain_seconds + supervisor.UNLOAD_SECONDS
        self._hurry = False  # running requests are not waited for

    @property
    def options(self) -> ServingOptions:
        """The options, with the ports that were chosen in place of 0."""
        chosen = self._addresses
        return replace(
            self._options,
            http_port=chosen.http_port,
            grpc_port=chosen.grpc_port,
            metrics_port=chosen.metrics_port,
        )

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self._addresses.client_host}:{self._addresses.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{self._addresses.client_host}:{self._addresses.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._addresses.client_host}:{self._addresses.metrics_port}/metrics"

    def __enter__(self) -> EmbeddedServer:
        options = self._options
        models_of(options.repository)
        self._addresses = choose_addresses(options.host, options.http_port, options.grpc_port, options.metrics_port)
        if not self._addresses.is_loopback:
            if options.model_control:
                raise ServerError(
                    f"model control lets clients run code on this machine, so it is not offered to all that can reach "
                    f"{self._addresses.host}; listen on 127.0.0.1"
                )
            self._report(f"open to everyone who can reach {self._addresses.host}: there is no access control")
        self._folder = Path(tempfile.mkdtemp(prefix="florence2-server-"))
        with contextlib.ExitStack() as undo:
            undo.callback(supervisor.remove_leftovers, self._folder, self._shm_prefix)
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
            require_shared_memory(expected_processes(served, triton))
            command = command_line(triton, served, self._shm_prefix, self._addresses, options)
            self._process = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__, str(self._folder), self._shm_prefix,
                 str(self._stop_seconds), *command],
                env={**environment(triton), PATH_VARIABLE: str(self._folder / "tickets")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches only us, and we stop the server in order
            )  # fmt: skip
            undo.callback(self._end_process)
            self._reader = threading.Thread(target=self._pass_log_on, name="tritonserver log", daemon=True)
            self._reader.start()
            self._wait_until_ready()
            # Found now, not when `wait` begins: a process that died in between would not be missed.
            self._models = {} if options.model_control else model_processes(self._folder)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Answer running requests, then stop. Ctrl-C meanwhile stops at once. Nothing is left either way."""
        self._undo.close()

    def wait(self) -> None:
        """Block while the server and its models' processes run. Raise ServerError when one of them has died.

        A model without its process cannot answer, so running requests are not waited for then. Under model control
        processes are not watched, because loading a model again ends some of them regularly.
        """
        while (code := self._process.poll()) is None:
            dead = [model for process, model in self._models.items() if not is_alive(process)]
            if dead:
                self._hurry = True
                raise ServerError(f"a process of {dead[0]} died")
            time.sleep(WATCH_SECONDS)
        raise ServerError(f"tritonserver stopped by itself: {_end(code)}")

    def _pass_log_on(self) -> None:
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
                reasons = self._log.failures or self._log.errors[-1:]
                raise ServerError("; ".join(reasons) or f"tritonserver stopped before it was ready: {_end(code)}")
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

    def _end_process(self) -> None:
        self._process.terminate()
        try:
            if self._hurry:
                time.sleep(2 * supervisor.POLL_SECONDS)  # two signals at once would count as one
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


def _end(code: int) -> str:
    """Describe an exit code. The supervisor's is 128 + N if signal N ended tritonserver, -N if it ended itself."""
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code if code < 0 else code - 128).name}"
    return f"exit code {code}"
