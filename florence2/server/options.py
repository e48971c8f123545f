"""ServingOptions: how to serve a model repository, passed from the command line to the launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.errors import ServerError
from florence2.triton.cache import DEFAULT_MIB

DEMO = Path("build/demo/model_repository")  # where `make demo` writes


@dataclass(frozen=True)
class ServingOptions:
    """What to serve, where, and how; a port of 0 means any free one. Raises ServerError if options are contradictory.

    `cache_mib` is the memory in MiB for the features of images, so that none is encoded twice; 0 means no cache.
    `cache_answers` is the memory in MiB for complete answers, which equal requests get again; 0 means none are kept.
    `stream` adds the streaming models, which load the language model a second time.
    `model_control` lets clients load models again; Triton then works on the repository itself, not on a mirror.
    `drain_seconds` is the time that running requests get when the server stops.
    `connection_age` is the time in seconds after which gRPC clients reconnect, so that they find new servers of the
    same name; running requests are answered first. None means never.
    `traces` is the OTLP endpoint over HTTP that Triton sends an OpenTelemetry trace of each request to; None for none.
    `tritonserver` is an installation to use instead of the wheel's, such as /opt/tritonserver in NVIDIA's container.
    """

    repository: Path = Path("build/model_repository")  # where `florence2 export` writes
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    cache_mib: int = DEFAULT_MIB
    cache_answers: int = 0
    stream: bool = False
    model_control: bool = False
    drain_seconds: int = 10  # container managers kill after 10 to 30
    connection_age: int | None = None
    traces: str | None = None
    tritonserver: Path | None = None

    def __post_init__(self) -> None:
        if self.stream and self.model_control:
            raise ServerError(
                "streaming cannot be combined with model control, under which the repository is served as it is; "
                "leave out --stream or --model-control"
            )
        if self.traces is not None and not self.traces.startswith(("http://", "https://")):
            raise ServerError("--traces must be an http:// or https:// URL, such as http://127.0.0.1:4318/v1/traces")
        if self.drain_seconds < 0 or (self.connection_age is not None and self.connection_age < 1):
            raise ServerError("--drain-seconds must be at least 0, and --connection-age at least 1")

    @classmethod
    def on_free_ports(cls, repository: Path, **options: Any) -> ServingOptions:
        """Return options with any free ports, for a demo or a test."""
        return cls(Path(repository), **{"http_port": 0, "grpc_port": 0, "metrics_port": 0, **options})
