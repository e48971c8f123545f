"""`serve` restarts a dead server, but not forever."""

from dataclasses import replace

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


def test_a_server_that_keeps_dying_is_given_up(monkeypatch, tmp_path, capsys):
    """Five deaths within minutes are a fault that a restart does not cure. Until then the ports stay the same."""
    Dying.started = []
    monkeypatch.setattr(foreground, "EmbeddedServer", Dying)
    with pytest.raises(ServerError, match="florence2_decoder died; that was the 5th time within 5 minutes"):
        foreground.serve(ServingOptions.on_free_ports(tmp_path))
    assert Dying.started == [(0, 0, 0), *[(1, 2, 3)] * 4]
    assert capsys.readouterr().out.count("a process of florence2_decoder died. Starting again") == 4


def test_a_server_that_cannot_start_is_not_restarted(tmp_path):
    """A second attempt would find no repository either."""
    with pytest.raises(ServerError, match="contains no models"):
        foreground.serve(ServingOptions.on_free_ports(tmp_path))
