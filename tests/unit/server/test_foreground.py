"""`serve` starts a dead server again, but not for ever."""

import pytest

from florence2.errors import ServerError
from florence2.server import foreground


class Dying:
    """A server that is ready at once and dies at once, on ports of its own choice."""

    started: list[tuple[int, int, int]]
    grpc_url = http_url = metrics_url = "somewhere"
    ports = (1, 2, 3)

    def __init__(self, repository, host, *ports, **_settings):
        self.started.append(ports)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def wait(self):
        raise ServerError("a process of florence2_decoder died")


def test_a_server_that_keeps_dying_is_given_up(monkeypatch, tmp_path, capsys):
    """Five deaths in a short while are a fault that a restart does not cure; the ports stay the same till then."""
    Dying.started = []
    monkeypatch.setattr(foreground, "EmbeddedServer", Dying)
    with pytest.raises(ServerError, match="a process of florence2_decoder died; that was the 5th time"):
        foreground.serve(tmp_path, http_port=0, grpc_port=0, metrics_port=0)
    assert Dying.started == [(0, 0, 0), *[(1, 2, 3)] * 4]
    assert capsys.readouterr().out.count("a process of florence2_decoder died. Starting again") == 4


def test_a_server_that_cannot_start_is_not_tried_again(tmp_path):
    """There is no repository, and a second attempt would find none either."""
    with pytest.raises(ServerError, match="holds no models"):
        foreground.serve(tmp_path, http_port=0, grpc_port=0, metrics_port=0)
