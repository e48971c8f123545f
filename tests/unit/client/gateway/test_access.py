"""Keys, rates, requests at the same time, and sizes, with a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from florence2_client.gateway import access
from florence2_client.gateway.access import Guard, Limits


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.scope['state']['client']} {len(await request.body())}")


def guarded(*keys, limits=None, clock=None):
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/v1/x", "/metrics")]
    routes.append(Route("/health", lambda request: PlainTextResponse("ok")))
    app = Guard(Starlette(routes=routes), keys, limits or Limits(), clock or Clock())

    async def with_state(scope, receive, send):
        scope.setdefault("state", {})
        await app(scope, receive, send)

    return TestClient(with_state)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_needed_everywhere_but_for_health():
    client = guarded("one", "two")
    assert client.get("/health").text == "ok"
    for path in "/v1/x", "/metrics":
        for headers in {}, bearer("three"), bearer(""), {"Authorization": "one"}, {"Authorization": "Basic one"}:
            refused = client.get(path, headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "INVALID_API_KEY"
        for key in "one", "two":
            answer = client.get(path, headers={"authorization": f"bearer {key}"})
            assert answer.text == f"{access.fingerprint(key)} 0"


def test_labeling_tools_send_keys_in_their_own_ways():
    client = guarded("one", "two")
    assert client.get("/v1/x", auth=("any name", "two")).text == f"{access.fingerprint('two')} 0"
    for headers in {"Token": "one"}, {"Authorization": "Token one"}:
        assert client.get("/v1/x", headers=headers).text == f"{access.fingerprint('one')} 0"
    for headers in (
        {"Token": "three"},
        {"Token": ""},
        {"Authorization": "Basic b25l"},
        bearer("three") | {"Token": "one"},
    ):
        assert client.get("/v1/x", headers=headers).status_code == 401


def test_a_rate_has_a_burst_and_recovers():
    clock = Clock()
    client = guarded("one", "two", limits=Limits(requests_per_minute=3), clock=clock)
    statuses = [client.post("/v1/x", headers=bearer("one")).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = client.post("/v1/x", headers=bearer("one"))
    assert refused.headers["retry-after"] == "20" and refused.json()["error"]["code"] == "RATE_LIMITED"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert client.post("/v1/x", headers=bearer("two")).status_code == 200  # a limit of its own
    assert client.get("/v1/x", headers=bearer("one")).status_code == 200  # lists cost nothing
    clock.now += 20
    assert client.post("/v1/x", headers=bearer("one")).status_code == 200
    assert client.post("/v1/x", headers=bearer("one")).status_code == 429


def test_a_rate_below_one_a_minute_lets_one_request_through():
    clock = Clock()
    client = guarded(limits=Limits(requests_per_minute=0.5), clock=clock)
    assert client.post("/v1/x").status_code == 200
    assert client.post("/v1/x").headers["retry-after"] == "120"


def test_requests_at_the_same_time_are_limited_until_the_response_ends():
    released, entered = asyncio.Event(), asyncio.Event()

    async def slow(scope, receive, send):
        entered.set()
        await released.wait()
        await PlainTextResponse("ok")(scope, receive, send)

    guard = Guard(slow, ["one"], Limits(concurrency=1))

    async def call():
        sent = []
        scope = {
            "type": "http", "path": "/v1/x", "method": "POST", "state": {}, "client": ("1.2.3.4", 5),
            "headers": [(b"authorization", b"Bearer one")],
        }  # fmt: skip

        async def send(message):
            sent.append(message)

        await guard(scope, None, send)
        return sent[0]["status"]

    async def scenario():
        first = asyncio.create_task(call())
        await entered.wait()
        assert await call() == 429
        released.set()
        assert await first == 200
        assert await call() == 200

    asyncio.run(scenario())


def test_without_keys_a_limit_is_of_an_address():
    client = guarded(limits=Limits(requests_per_minute=1))
    assert client.post("/v1/x").text == "testclient 0"
    assert client.post("/v1/x").status_code == 429


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_refused(announced):
    client = guarded(limits=Limits(body_bytes=2**20))
    assert client.post("/v1/x", content=bytes(2**20)).text.endswith(f" {2**20}")
    content = bytes(2**20 + 1) if announced else iter([bytes(2**20), b"x"])
    refused = client.post("/v1/x", content=content)
    assert refused.status_code == 413 and "1 MiB" in refused.text


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr(access, "BODY_SECONDS", 0.0)

    async def scenario():
        async def never():
            await asyncio.Event().wait()

        scope = {"headers": []}
        guard = Guard(None, [], Limits())
        with pytest.raises(access.HTTPException) as refused:
            await guard._limited(scope, never)()
        assert refused.value.status_code == 408

    asyncio.run(scenario())


def test_what_is_remembered_of_clients_is_bounded(monkeypatch):
    monkeypatch.setattr(access, "MOST_CLIENTS", 3)
    guard = Guard(None, [], Limits(requests_per_minute=1))
    for number in range(10):
        guard._admit(str(number)).running -= 1
    assert list(guard._uses) == ["7", "8", "9"]


@pytest.mark.parametrize("length", ["9" * 5000, "1" + "0" * 18])
def test_a_length_that_no_body_has_is_refused(length):
    """Python refuses to read numbers of thousands of digits."""
    refused = guarded(limits=Limits(body_bytes=10)).post("/v1/x", content=b"x", headers={"Content-Length": length})
    assert refused.status_code == 413
