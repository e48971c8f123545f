"""EmbeddedServer: a Triton Inference Server for as long as a `with` block lasts.

Called by `serve`, the demo and the live tests.
"""

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
from pathlib import Path

from florence2.errors import ServerError
from florence2.server import supervisor
from florence2.server.addresses import choose_addresses
from florence2.server.folder import assemble, mirror, models_of
from florence2.server.installation import Installation, find_installation
from florence2.server.launch import CACHE_MIB, DRAIN_SECONDS, command_line, environment, require_shared_memory
from florence2.server.log import LogReader
from florence2.server.stubs import expected_processes, is_alive, model_processes
from florence2.server.wheel import find_wheel
from florence2.triton.admission import PATH_VARIABLE

WATCH_SECONDS = 0.5


class EmbeddedServer:
    """Tritonserver with an exported repository. Entering waits until all models are ready, leaving stops it.

    A port of 0 takes a free one. `report` gets a line for every step and every problem, from another thread.
    `cache_mib` of memory are for features of pictures that are asked about again; 0 switches the cache off.
    `stream` adds the models that stream, in memory of their own.
    `tritonserver`: an installation to use in place of the wheel's, such as the container's /opt/tritonserver.
    `drain_seconds` are what running requests get when it is left. `connection_age`: seconds after which callers by gRPC
    are made to connect anew, so that they find new servers of the same name; what they asked is answered.
    `model_control` lets clients have models loaded again, in explicit mode; Triton then works on the repository itself.
    Entering raises ServerError when the server cannot start; its sentence tells why.
    """

    def __init__(
        self,
        repository: Path,
        host: str = "127.0.0.1",
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        report: Callable[[str], None] = print,
        model_control: bool = False,
        cache_mib: int = CACHE_MIB,
        stream: bool = False,
        tritonserver: Path | None = None,
        drain_seconds: int = DRAIN_SECONDS,
        connection_age: int | None = None,
    ) -> None:
        self.repository = Path(repository)
        self._asked_addresses = (host, http_port, grpc_port, metrics_port)
        self._cache_mib = cache_mib
        self._report = report
        self._model_control = model_control
        self._stream = stream
        self._tritonserver = tritonserver
        self._drain_seconds = drain_seconds
        self._connection_age = connection_age
        self._log = LogReader()
        self._shm_prefix = f"florence2_{os.getpid()}_{secrets.token_hex(4)}_"
        self._hurry = False  # running requests are not waited for

    @property
    def ports(self) -> tuple[int, int, int]:
        """HTTP, gRPC, metrics; of 0 the one that was chosen."""
        return self._addresses.http_port, self._addresses.grpc_port, self._addresses.metrics_port

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
        models_of(self.repository)
        if self._stream and self._model_control:
            raise ServerError("models that stream are derived from those there are; leave out stream or model control")
        if self._drain_seconds < 0 or (self._connection_age is not None and self._connection_age < 1):
            raise ServerError("a time to drain is 0 seconds or more, and a connection's age at least 1")
        self._addresses = choose_addresses(*self._asked_addresses)
        if not self._addresses.is_loopback:
            if self._model_control:
                raise ServerError(
                    f"model control lets callers run code here, so it is not opened to all who can reach "
                    f"{self._addresses.host}; listen on 127.0.0.1"
                )
            self._report(f"open to everyone who can reach {self._addresses.host}: there is no access control")
        self._folder = Path(tempfile.mkdtemp(prefix="florence2-server-"))
        with contextlib.ExitStack() as undo:
            undo.callback(supervisor.remove_leftovers, self._folder, self._shm_prefix)
            triton = self._find_triton()
            served = self.repository.resolve() if self._model_control else mirror(self._folder, self.repository)
            if self._stream:
                from florence2.server.streaming import (
                    write_streaming_models,  # beware: make install imports us without protobuf
                )

                write_streaming_models(self.repository, served)
            require_shared_memory(expected_processes(served, triton))
            self._process = self._launch(triton, served)
            undo.callback(self._end_process)
            self._reader = threading.Thread(target=self._pass_log_on, name="tritonserver log", daemon=True)
            self._reader.start()
            self._wait_until_ready()
            # Here, not when somebody starts to wait: who has died by then would not be missed.
            self._models = {} if self._model_control else model_processes(self._folder)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Running requests are answered first; another Ctrl-C meanwhile stops at once. Nothing is left either way."""
        self._undo.close()

    def wait(self) -> None:
        """Blocks while the server and its models' processes run. Raises ServerError when one of them has died.

        A model without its process can answer nobody, so the requests that still run are then not waited for. Under
        model control processes are not watched: loading a model again ends some of them in good order.
        """
        while (code := self._process.poll()) is None:
            dead = [model for process, model in self._models.items() if not is_alive(process)]
            if dead:
                self._hurry = True
                raise ServerError(f"a process of {dead[0]} died")
            time.sleep(WATCH_SECONDS)
        raise ServerError(f"tritonserver stopped by itself: {_end(code)}")

    def _find_triton(self) -> Installation:
        return find_installation(self._tritonserver) if self._tritonserver else assemble(self._folder, find_wheel())

    def _launch(self, triton: Installation, served: Path) -> subprocess.Popen[bytes]:
        """The supervisor has a session of its own: Ctrl-C in a terminal is for us alone, and we stop it in order."""
        supervise = [sys.executable, "-I", supervisor.__file__, str(self._folder), self._shm_prefix]
        command = command_line(
            triton,
            served,
            self._shm_prefix,
            self._addresses,
            self._model_control,
            self._cache_mib,
            self._drain_seconds,
            self._connection_age,
        )
        return subprocess.Popen(
            [*supervise, str(self._stop_seconds), *command],
            env={**environment(triton), PATH_VARIABLE: str(self._folder / "tickets")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _pass_log_on(self) -> None:
        """Reads to the end whatever `report` does: a full pipe would make tritonserver stand still."""
        assert self._process.stdout is not None
        mirror = str(self._folder / "repository")
        for line in self._process.stdout:
            shown = self._log.read(line.decode(errors="replace").replace(mirror, str(self.repository)))
            if shown is not None:
                with contextlib.suppress(Exception):
                    self._report(shown)

    def _wait_until_ready(self) -> None:
        while not self._is_ready():
            code = self._process.poll()
            if code is not None:
                self._reader.join()
                raise ServerError("; ".join(self._log.failures or self._log.errors[-1:]) or
                                  f"tritonserver stopped before it was ready: {_end(code)}")  # fmt: skip
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
                time.sleep(2 * supervisor.POLL_SECONDS)  # two signals at once would be one
                self._process.terminate()
            self._process.wait(self._stop_seconds + supervisor.KILL_SECONDS)
        except KeyboardInterrupt:
            self._process.terminate()
            self._process.wait(supervisor.KILL_SECONDS)
            raise
        finally:
            self._process.kill()
            self._process.wait()
            self._close_pipes()

    @property
    def _stop_seconds(self) -> int:
        return self._drain_seconds + supervisor.UNLOAD_SECONDS

    def _close_pipes(self) -> None:
        self._reader.join(supervisor.KILL_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _end(code: int) -> str:
    """In words: the supervisor's exit code is 128 + N when signal N ended tritonserver, and -N when it ended itself."""
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code if code < 0 else code - 128).name}"
    return f"exit code {code}"
