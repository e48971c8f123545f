"""What `florence2 batch` does when the server is away or fails."""

from __future__ import annotations

from PIL import Image

from florence2.errors import ConnectionFailed, InternalError
from tests.unit.client.cli.batch.runs import ALL, batch, keys, lines


def test_server_that_goes_away_stops_the_run(server, folder, capsys):
    """When the retries end, the run ends with exit code 3; the next one does the rest."""

    def away(count):
        if count > 4:
            raise ConnectionFailed("no answer from there")

    server.fail = away
    assert batch("--tasks", "caption", "--concurrency", "1") == 3
    assert len(lines()) == 3  # the first request was the probe
    error = capsys.readouterr().err
    assert "3 of 5 done, 2 left; run the same command again to resume" in error
    assert error.splitlines()[-1] == "florence2: no answer from there"
    server.fail = lambda count: None
    assert batch("--tasks", "caption") == 0
    assert keys() == [key for key in ALL if key[1] == "<CAPTION>"]


def test_waiting_for_the_server_is_announced_once(server, folder, capsys):
    """There is one note, not one for each request in flight."""

    def away(count):
        if 2 <= count <= 5:
            raise ConnectionFailed("no answer from there")

    server.fail = away
    assert batch("--tasks", "caption", "--patience", "20") == 0  # sic: the older name of --retry-for
    assert capsys.readouterr().err.count("no answer from there; retrying for up to 20 seconds") == 1
    assert len(lines()) == 5


def test_faults_of_the_server_are_left_for_the_next_run(server, folder, capsys):
    """One internal error costs one answer, which is not written down; exit code 1."""

    def fault(count):
        if count == 3:
            raise InternalError("ours")

    server.fail = fault
    assert batch("--tasks", "caption") == 1
    assert len(lines()) == 4
    assert batch("--tasks", "caption") == 0
    assert len(lines()) == 5


def test_many_failures_in_a_row_end_the_run(server, folder, capsys):
    """The last error is reported, and the remaining images are left for the next run."""

    def fault(count):
        if count > 1:
            raise InternalError("the stub is dead")

    server.fail = fault
    for number in range(100):
        Image.new("RGB", (4, 4)).save(f"images/more{number}.png")
    assert batch("--tasks", "caption") == 1
    assert len(server.asked) < 60
    assert "florence2: the stub is dead" in capsys.readouterr().err
