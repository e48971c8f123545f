"""`serve` restarts a server that died, and gives up one that does not become ready."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from florence2.errors import ServerError
from florence2.server import foreground
from florence2.server.embedded import ServerDied
from florence2.server.options import ServingOptions


class Dying:
    """A server that is ready at once, on ports that it chooses, and dies at once."""

    started: list[tuple[int, int, int]]
    grpc_url = http_url = metrics_url = "somewhere"

    def __init__(self, options, report):
        self.started.append((options.http_port, options.grpc_port, options.metrics_port))
        self.options = replace(options, http_port=1, grpc_port=2, metrics_port=3)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def wait(self):
        raise ServerDied("a process of florence2_decoder died")


def test_a_server_that_keeps_dying_is_restarted_with_growing_pauses(monkeypatch, tmp_path, capsys):
    """Clients can crash it, so it is never given up. The ports stay the same, and Ctrl-C ends a pause."""
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 9:
            raise KeyboardInterrupt

    Dying.started = []
    monkeypatch.setattr(foreground, "EmbeddedServer", Dying)
    monkeypatch.setattr(foreground.time, "sleep", pause)
    assert foreground.serve(ServingOptions.on_free_ports(tmp_path)) == 0
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 32, 32]
    assert Dying.started == [(0, 0, 0), *[(1, 2, 3)] * 8]
    said = capsys.readouterr().out
    assert said.count("a process of florence2_decoder died. Starting again") == 9
    assert "Starting again in 1 s, as it died 2 times within 5 minutes" in said


def test_deaths_of_long_ago_do_not_count(monkeypatch, tmp_path):
    """After five minutes without one, the next restart is immediate again."""
    pauses, clock = [], iter(range(0, 10_000, 301))

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 4:
            raise KeyboardInterrupt

    Dying.started = []
    monkeypatch.setattr(foreground, "EmbeddedServer", Dying)
    monkeypatch.setattr(foreground, "time", SimpleNamespace(sleep=pause, monotonic=lambda: next(clock)))
    assert foreground.serve(ServingOptions.on_free_ports(tmp_path)) == 0
    assert pauses == [0, 0, 0, 0]


def test_a_server_that_cannot_start_is_not_restarted(tmp_path):
    """A second attempt would find no repository either."""
    with pytest.raises(ServerError, match="contains no models"):
        foreground.serve(ServingOptions.on_free_ports(tmp_path))
