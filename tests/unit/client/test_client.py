"""The two clients: their methods, and how they are closed."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from florence2.errors import InvalidOption
from florence2.tasks import TASKS
from florence2_client import AsyncClient, Client
from tests.unit.client.fake_transport import AsyncFakeTransport, FakeTransport, png

OTHER_METHODS = ("run", "ask", "caption_regions", "run_many", "stream", "close")


def task_methods():
    """Return the methods that send one task, by name, each with the arguments to call it with."""
    return {
        name: [
            (1, 2, 3, 4) if name == "region" else "words" for name in list(inspect.signature(method).parameters)[2:-1]
        ]
        for name, method in inspect.getmembers(Client, inspect.isfunction)
        if not name.startswith("_") and name not in OTHER_METHODS
    }


def test_every_task_has_one_method():
    """Its docstring names the task in the first line."""
    asked = {}
    for name, arguments in task_methods().items():
        transport = FakeTransport()
        getattr(Client(transport=transport), name)(png(), *arguments, num_beams=1)
        tensors = transport.asked[0][1]
        asked[tensors["TASK"][0].decode()] = name
        assert ("TEXT" in tensors) == bool(arguments)
        assert tensors["NUM_BEAMS"].tolist() == [1]
        assert f"`{tensors['TASK'][0].decode()}`" in inspect.getdoc(getattr(Client, name)).splitlines()[0]
    assert set(asked) == set(TASKS) and len(task_methods()) == len(TASKS)


def test_both_clients_have_one_interface():
    """The asyncio client has the same methods with the same parameters, and puts the same tensors on the wire."""
    for name, arguments in task_methods().items():
        transport, other = FakeTransport(), AsyncFakeTransport()
        result = getattr(Client(transport=transport), name)(png(), *arguments)
        assert asyncio.run(getattr(AsyncClient(transport=other), name)(png(), *arguments)) == result
        assert other.asked == transport.asked
    for name in (*OTHER_METHODS, "__init__"):
        parameters = [list(inspect.signature(getattr(kind, name)).parameters) for kind in (Client, AsyncClient)]
        assert parameters[0] == parameters[1]


def test_unknown_option_is_a_type_error():
    """A misspelled option is not silently ignored."""
    with pytest.raises(TypeError, match="num_beam"):
        Client(transport=FakeTransport()).caption(png(), num_beam=1)


def test_model_and_timeout_reach_the_transport():
    """They are the model of the client and the timeout of the call."""
    transport = FakeTransport()
    Client(model="mine_ensemble", transport=transport).run(png(), "od", timeout=2.5)
    model, _, timeout = transport.asked[0]
    assert model == "mine_ensemble"
    assert timeout == pytest.approx(2.5, abs=0.1)


def test_client_closes_its_transport_once():
    """Leaving the `with` block closes it. Closing again is harmless; another request is an error."""
    transport = FakeTransport()
    with Client(transport=transport) as client:
        client.run(png(), "od")
    client.close()
    assert transport.closed == 1
    with pytest.raises(RuntimeError):
        client.run(png(), "od")


@pytest.mark.parametrize("seconds", [float("nan"), -1, "5", None])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_time_to_retry_for_is_a_number(kind, seconds):
    """NaN would retry without end."""
    with pytest.raises(InvalidOption, match="retry_for must be a number of seconds"):
        kind(retry_for=seconds)
    kind(retry_for=float("inf"), transport=FakeTransport())
